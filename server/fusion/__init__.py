"""Fusion: many sites' soft masks into one pseudo mask, as ``init / fold / finish`` over an explicit state.

Masks are folded as they arrive and forgotten; the state of a chunk is all that is kept. Sums are whole numbers, so the
result has the same bytes whatever the order of arrival.
"""

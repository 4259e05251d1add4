"""The student's networks, one per file; `build` makes any of them from its settings.

Importing this package loads no torch: the settings are read by processes that must stay small.
"""

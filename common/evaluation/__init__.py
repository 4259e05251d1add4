"""How good masks are, told the way a medical reviewer asks for it: per image, with intervals, tests and strata.

One image at a time (`per_image`, `boundary`, `calibration`), then all of them (`rows`, `statistics`, `summary`); `folders`
reads masks from disk. `docs/evaluation.md` says what each number is and where it comes from.
"""

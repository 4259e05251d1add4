"""Data sets, one a file, in the form they are published in."""

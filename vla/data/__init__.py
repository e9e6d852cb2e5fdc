"""Data sets of robots: read and written, mixed and augmented.

Whatever the format, a data set is a `Source`: an `About` that names its cameras and dimensions, and episodes
that are read one at a time. See docs/data.md.
"""

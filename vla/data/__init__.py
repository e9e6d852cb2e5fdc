"""Data sets of demonstrations: collection, loading, normalisation statistics."""

"""Measures one host: the policy alone against the policy served, and where the difference goes."""

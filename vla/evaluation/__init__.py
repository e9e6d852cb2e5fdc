"""Closed-loop evaluation: what a policy achieves, served and in-process, and whether it obeys."""

"""Faults and attacks on real processes: what clients see, what is lost, how soon it serves again."""

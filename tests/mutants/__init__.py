"""Mutation tests: small faults put into the code one at a time; the unit tests must notice them."""

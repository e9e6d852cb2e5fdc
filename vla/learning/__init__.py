"""Learning from what a policy itself does: the states that it visits, and how it is judged there."""

"""`python -m bench gpu`: is a GPU host right, how fast is it, and what happens when something fails."""

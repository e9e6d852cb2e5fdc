"""Every architecture on the same demonstrations with the same budget: `python -m bench compare`."""

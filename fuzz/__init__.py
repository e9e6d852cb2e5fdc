"""Hostile input by the thousand: what decodes it in this process, and a server that answers it."""

"""A `.mar` archive: written, read within bounds, unpacked, digested. No torch, no server."""

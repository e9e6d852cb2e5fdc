"""A folder in shared memory, by which a gate hands batches to workers of the same host."""

import tempfile
from pathlib import Path

# Tells workers the folder.
VARIABLE = "VLA_SHARED_MEMORY"
PLACE = Path("/dev/shm")


def make_folder() -> Path | None:
    """Return a new folder in shared memory; None: there is none, or it can't be written."""
    try:
        return Path(tempfile.mkdtemp(prefix="vla-serve-", dir=PLACE))
    except OSError:
        return None

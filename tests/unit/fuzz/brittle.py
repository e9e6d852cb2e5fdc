"""A target that does not stand everything, for a process of its own, which so has no torch to import."""

import os
import time
from collections.abc import Mapping

from fuzz.target import Target


def brittle(data: bytes) -> str:
    """Fail by the first letter: raise, die, or take long."""
    if data.startswith(b"a"):
        raise ValueError("a")
    if data.startswith(b"b"):
        os._exit(9)
    while data.startswith(b"c") and time.thread_time() < 2.5:
        pass
    return "fine"


def load_brittle() -> Mapping[str, Target]:
    """Return it."""
    return {"brittle": Target("brittle", tuple(letter.encode() * 40 for letter in "abcdefgh"), (), brittle)}

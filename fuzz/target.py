"""What is tried: a reader of a stranger's bytes, and the inputs to begin with."""

from collections.abc import Callable
from dataclasses import dataclass

from fuzz.mutation import Make, mutated


@dataclass(frozen=True)
class Target:
    """One reader. `check` returns what became of an input, in a word; whatever it raises is a finding."""

    name: str
    # Valid inputs, and pieces that mean something to the reader.
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    check: Callable[[bytes], str]
    make: Make = mutated

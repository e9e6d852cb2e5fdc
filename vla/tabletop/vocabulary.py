"""The words that sentences are made of: names of colours, typing errors, and what means nothing here."""

import functools
import json
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from string import ascii_lowercase
from typing import Literal, NamedTuple

import numpy as np

from vla.tabletop.commands import COLOURS, HELD_OUT, PHRASES
from vla.tabletop.phrasebook import BOOK, Patterns

Split = Literal["train", "test"]

# Block -> names of its colour; `absent`: of colours that no block has.
COLOUR_NAMES = json.loads(Path(__file__).with_name("colours.json").read_text())
_VOCABULARY = Path(__file__).parents[1] / "assets" / "clip" / "tokenizer.json"
# Share of the typing errors of training that are any letter, and no neighbour of the right one.
ANY_LETTER = 0.3
# Share of the unknown words of training that are a colour within other letters.
COMPOUND = 0.15
# Share of the known words that are to be told from colours that resemble one, and how much, in [0, 1].
RESEMBLING, RESEMBLANCE = 0.5, 0.55


class Words(NamedTuple):
    """The random generator and the split that a sentence is drawn from."""

    random: np.random.Generator
    split: Split

    def choose(self, options: Sequence[str]) -> str:
        """Draw one."""
        return options[int(self.random.integers(len(options)))]

    def pattern(self, patterns: Patterns) -> str:
        """Draw a pattern of this split."""
        return self.choose(patterns.train if self.split == "train" else patterns.test)

    def chance(self, share: float) -> bool:
        """Return True that often."""
        return bool(self.random.random() < share)


def typo(words: Words, word: str) -> str:
    """Misspell a word by one key: a neighbour, one left out, one doubled, two swapped; never a real word.

    Training has any other letter as well, in place of one or before it.
    """
    while True:
        wrong = slip(words, word)
        held = sum(map(ord, wrong)) % 4 == 0  # a quarter of all errors is kept for the test
        if wrong not in (*BOOK.near, word) and held == (words.split == "test"):
            return wrong


@functools.cache
def names(colour: str, split: Split, kind: str) -> list[str]:
    """Return the synonyms of a block's colour, or the absent colours, that a split uses in a kind."""
    known = [
        name for name in COLOUR_NAMES[colour] if not set(name.split()) & _never_words() and name != colour
    ]
    if kind in ("plain", "synonym"):
        return known
    # Elsewhere training leaves out the names that it has in plain sentences alone; the test uses only them.
    special = [name for name in known if set(name.split()) & set(BOOK.plain_only)]
    return special if split == "test" and special else [name for name in known if name not in special]


@functools.cache
def unknown_words(split: Split) -> list[str]:
    """Return real words that mean nothing here; the splits share none."""
    found = sorted(real_words())
    return [word for word in found if (sum(map(ord, word)) % 5 == 0) == (split == "test")]


@functools.cache
def real_words() -> frozenset[str]:
    """Every word of CLIP's vocabulary that means nothing here."""
    entries = json.loads(_VOCABULARY.read_text())["model"]["vocab"]
    words = (entry.removesuffix("</w>") for entry in entries if entry.endswith("</w>"))
    known = _known()
    return frozenset(
        word
        for word in words
        if 4 <= len(word) <= 12 and word.isascii() and word.isalpha() and not _resembles(word, known)
    )


@functools.cache
def _known() -> frozenset[str]:
    """Every word of the phrasebook and of the names of colours."""
    names = " ".join(" ".join(each) for each in COLOUR_NAMES.values())
    forms = " ".join(" ".join(each) for table in (PHRASES, HELD_OUT) for each in table.values())
    text = f"{BOOK.words()} {names} {forms}"
    return frozenset("".join(letter if letter.isalpha() else " " for letter in text).split())


def _resembles(word: str, known: frozenset[str]) -> bool:
    """Whether a word is known, an inflection of a known one, or within one typing error of a colour."""
    stems = (
        word,
        word.removesuffix("s"),
        word.removesuffix("ed"),
        word.removesuffix("ing"),
        word.removesuffix("y"),
    )
    return any(stem in known for stem in stems) or _near(word)


@functools.cache
def _misspellings() -> frozenset[str]:
    """Every word of letters that is one typing error from a colour."""
    letters, found = "abcdefghijklmnopqrstuvwxyz", set[str]()
    for colour in COLOURS:
        for i in range(len(colour) + 1):
            before, after = colour[:i], colour[i:]
            found |= {before + letter + after for letter in letters}
            found |= {before + letter + after[1:] for letter in ("", *letters)}
            found.add(before + after[1:2] + after[:1] + after[2:])
    return frozenset(found)


def _near(word: str) -> bool:
    """Whether a word is a colour with a typing error, or holds a colour."""
    return word in _misspellings() or any(colour in word for colour in COLOURS if len(colour) > 3)


@functools.cache
def _never_words() -> frozenset[str]:
    return frozenset(name for group in BOOK.never.values() for name in group)


def unknown(words: Words) -> str:
    """Return a word that means nothing here: a real one, or letters; in training now and then a compound."""
    if words.split == "train" and words.chance(COMPOUND):
        return compound(words)
    if words.chance(0.75):
        return words.choose(unknown_words(words.split))
    count = int(words.random.integers(3, 9))
    letters = [
        words.choose(("aeiou", "bcdfghjklmnprstvwz")[index % 2 ^ words.chance(0.2)]) for index in range(count)
    ]
    word = "".join(words.choose(list(letter)) for letter in letters)
    return f"{word}x" if word in _known() or word in real_words() or _near(word) else word


def compound(words: Words) -> str:
    """Return a colour within a word that means nothing here: letters or a real word before it or after it."""
    while True:
        colour = words.choose(COLOURS)
        other = words.choose(unknown_words(words.split))[: int(words.random.integers(3, 8))]
        word = colour + other if words.chance(0.4) else other + colour
        if word not in _known() and word not in _misspellings():
            return word


def word(words: Words) -> tuple[str, int]:
    """Return a word and the block whose colour it names: an index into `COLOURS`, or -1 for none."""
    index = int(words.random.integers(-len(COLOURS), len(COLOURS)))
    if index < 0:
        kind = words.random.random()
        if kind < 0.4:
            return words.choose(_resembling() if words.chance(RESEMBLING) else _other_words()), -1
        return (words.choose(_single("absent")) if kind < 0.6 else unknown(words)), -1
    colour = COLOURS[index]
    kind = words.random.random()
    if kind < 0.4:
        return typo(words, colour), index
    return colour if kind < 0.6 else words.choose(_single(colour)), index


@functools.cache
def _single(colour: str) -> list[str]:
    """Return the names of a block's colour, or the absent colours, that are one word."""
    return [name for name in names(colour, "train", "plain") if " " not in name]


@functools.cache
def _other_words() -> list[str]:
    """Return the words of the phrasebook and of colours' names that name no block's colour alone."""
    known = {name for colour in COLOURS for name in (colour, *_single(colour))}
    return sorted(each for each in _known() - known - _never_words() if len(each) > 1)


@functools.cache
def _resembling() -> list[str]:
    """Return those of the other words that may be taken for a misspelt colour, as "here" for "green"."""
    return [
        each
        for each in _other_words()
        if any(SequenceMatcher(None, each, colour).ratio() >= RESEMBLANCE for colour in COLOURS)
    ]


def slip(words: Words, word: str) -> str:
    """Make one typing error in a word of letters."""
    place, kind = int(words.random.integers(len(word))), words.random.integers(4)
    before, letter, after = word[:place], word[place], word[place + 1 :]
    if words.split == "train" and words.chance(ANY_LETTER):
        wrong = words.choose(ascii_lowercase)
        return before + wrong + (letter if words.chance(0.5) else "") + after
    if kind == 0:
        return before + words.choose(list(BOOK.neighbours.get(letter, letter))) + after
    if kind == 1:
        return before + after
    if kind == 2:
        return before + letter + letter + after
    return before + after[:1] + letter + after[1:]

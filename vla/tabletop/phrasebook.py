"""What people say: patterns and words, as `phrasebook.json` has them.

Slots of a pattern: {v} a whole instruction, {w} a refused one; {o} the object meant, {x} and {y} others;
{c} and {d} colours, {n} a noun; {p} an instruction about "it", {q} a refused one; {done} and {doing} a task's
participle and gerund. Patterns under `test` are never trained; every
word of theirs is.
"""

from pathlib import Path

import msgspec

from vla.tabletop.commands import TASKS


class Patterns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Patterns of one slot, by the split that uses them."""

    train: tuple[str, ...]
    test: tuple[str, ...]


class Phrasebook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that sentences are made of, but for the names of colours."""

    # Task -> how it is said of an object, {o}.
    verbs: dict[str, Patterns]
    # Task -> how it is said of what has been named.
    pronouns: dict[str, tuple[str, ...]]
    # What is said around an instruction.
    frames: Patterns
    # Task -> how it is called: "lifted", "lifting".
    participles: dict[str, tuple[str, ...]]
    gerunds: dict[str, tuple[str, ...]]
    # What should be done with an object, said as a statement; and what should not.
    statements: Patterns
    prohibitions: Patterns
    # An instruction beside another task with the same object, which is refused.
    changes: Patterns
    # How an object is named.
    objects: Patterns
    # An object first, then what to do with it.
    fronted: Patterns
    # An object told from one that is not meant; whole instructions that refuse another one.
    contrasts: Patterns
    refusals: Patterns
    # An object told by one that is near it.
    landmarks: Patterns
    # What calls for holding still, and what forbids an instruction.
    stops: Patterns
    forbidden: Patterns
    # Objects of no colour or of several.
    vague: Patterns
    # What asks for nothing that can be done here.
    questions: Patterns
    nouns: tuple[str, ...]
    other_verbs: tuple[str, ...]
    other_nouns: tuple[str, ...]
    # Names of colours that training has in plain sentences alone.
    plain_only: tuple[str, ...]
    # Block -> names of its colour that no training sentence has; `absent`: of other colours.
    never: dict[str, tuple[str, ...]]
    # Real words within one typing error of a colour: neither typing errors nor unknown words.
    near: tuple[str, ...]
    # Keys beside each key of an American keyboard.
    neighbours: dict[str, str]

    def words(self) -> str:
        """Return all patterns and words that mean something, one after the other."""
        patterns = [each for each in _values(self) if isinstance(each, Patterns)] + list(self.verbs.values())
        lists = [*(p.train + p.test for p in patterns), *self.pronouns.values()]
        lists += [*self.participles.values(), *self.gerunds.values()]
        lists += [self.nouns, self.other_verbs, self.other_nouns, self.near, *self.never.values()]
        return " ".join(" ".join(each) for each in lists)


def _values(book: Phrasebook) -> list[object]:
    return [getattr(book, name) for name in book.__struct_fields__]


BOOK = msgspec.json.decode(Path(__file__).with_name("phrasebook.json").read_bytes(), type=Phrasebook)
if set(BOOK.verbs) != set(TASKS):
    raise ValueError(f"phrasebook.json has verbs for {sorted(BOOK.verbs)}, the tasks are {sorted(TASKS)}")

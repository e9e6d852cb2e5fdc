"""Commands as people say them, drawn from a grammar: those that mean a goal, and those that mean none.

Sentences of the split `train` and of the split `test` share no pattern; `test` says nothing that training has
not shown the words of, but for its kinds `never` and `unknown`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vla.tabletop.commands import COLOURS, GOALS, HELD_OUT, PHRASES, TASKS, Goal
from vla.tabletop.phrasebook import BOOK, Patterns
from vla.tabletop.vocabulary import COLOUR_NAMES, Split, Words, names, real_words, slip, typo, unknown

# Kinds of commands that mean a goal.
Kind = Literal["plain", "synonym", "typo", "negation", "landmark"]
# Kinds of commands that mean none.
Impossible = Literal[
    "stop",
    "forbidden",
    "vague",
    "no_verb",
    "absent",
    "unknown",
    "other_verb",
    "other_noun",
    "nonsense",
    "never",
]

# How often training draws each.
KINDS: dict[Kind, float] = {"plain": 0.2, "synonym": 0.2, "typo": 0.25, "negation": 0.2, "landmark": 0.15}
IMPOSSIBLE: dict[Impossible, float] = {
    "stop": 0.1,
    "forbidden": 0.17,
    "vague": 0.12,
    "no_verb": 0.05,
    "absent": 0.11,
    "unknown": 0.19,
    "other_verb": 0.13,
    "other_noun": 0.05,
    "nonsense": 0.08,
}
# Share of the trained sentences that have no article, a typing error in another word, a closing sign.
BARE, SLIP, SIGN = 0.08, 0.08, 0.25
# Share of the sentences that name the object first, and of those that state what should be done.
FRONTED, STATED = 0.15, 0.2


def command(random: np.random.Generator, goal: Goal, kind: Kind, split: Split) -> str:
    """Say a goal in a sentence of this kind."""
    words = Words(random, split)
    if kind in ("plain", "typo") and split == "train" and words.chance(0.25):
        forms = PHRASES[goal.task] + HELD_OUT[goal.task] if kind == "typo" else PHRASES[goal.task]
        sentence = words.choose(forms).format(colour=goal.colour)
        return _finished(words, _misspelt(words, goal, sentence) if kind == "typo" else sentence)
    colour = _synonym(words, goal.colour, kind) if kind != "plain" else goal.colour
    if kind == "typo":
        colour = typo(words, goal.colour)
    if kind == "negation":
        return _finished(words, _framed(words, _negation(words, goal, colour)))
    return _finished(words, _framed(words, _said(words, goal.task, _object(words, colour, kind))))


def impossible(
    random: np.random.Generator, kind: Impossible, split: Split, goals: Sequence[Goal] = GOALS
) -> str:
    """Say something that no goal is meant by; what it forbids, or says wrongly, is one of `goals`."""
    words = Words(random, split)
    goal = goals[int(random.integers(len(goals)))]
    say = {
        "stop": lambda: words.pattern(BOOK.stops),
        "forbidden": lambda: _forbidden(
            words, goal.task, _object(words, _any_name(words, goal.colour), "plain")
        ),
        "vague": lambda: _said(words, goal.task, _vague(words)),
        "no_verb": lambda: _object(words, goal.colour, "landmark" if words.chance(0.3) else "plain"),
        "absent": lambda: _said(words, goal.task, _object(words, _absent(words), "landmark-")),
        "never": lambda: _said(words, goal.task, _object(words, _never(words, goal.colour), "plain")),
        "unknown": lambda: _unknown_somewhere(words, goal),
        "other_verb": lambda: _other_verb(words, goal),
        "other_noun": lambda: _said(words, goal.task, f"the {goal.colour} {words.choose(BOOK.other_nouns)}"),
        "nonsense": lambda: _nonsense(words),
    }
    return _finished(words, _framed(words, say[kind]()))


def draw(random: np.random.Generator, goal: Goal | None, split: Split, goals: Sequence[Goal] = GOALS) -> str:
    """Say a goal, or something that means none of `goals`, in a kind drawn by the shares above."""
    if goal is None:
        kinds = list(IMPOSSIBLE)
        kind = kinds[random.choice(len(kinds), p=list(IMPOSSIBLE.values()))]
        return impossible(random, kind, split, goals)
    kinds = list(KINDS)
    return command(random, goal, kinds[random.choice(len(kinds), p=list(KINDS.values()))], split)


def _synonym(words: Words, colour: str, kind: str) -> str:
    options = names(colour, words.split, kind)
    single = [name for name in options if colour not in name]
    if kind == "synonym":
        return words.choose(single if single and words.chance(0.7) else options)
    return _any_name(words, colour, kind)


def _any_name(words: Words, colour: str, kind: str = "other") -> str:
    """Return a colour's own name, most of the time."""
    return words.choose(names(colour, words.split, kind)) if words.chance(0.2) else colour


def _noun(words: Words) -> str:
    return words.choose(BOOK.nouns)


def _object(words: Words, colour: str, kind: str) -> str:
    """Name one object; `landmark` adds another beside it, `landmark-` now and then does."""
    named = words.pattern(BOOK.objects).format(c=colour, n=_noun(words))
    if words.chance(BARE):
        named = named.removeprefix("the ")
    if kind == "landmark" or (kind == "landmark-" and words.chance(0.15)):
        first, second = _others(words, colour)
        place = words.pattern(BOOK.landmarks)
        return place.format(o=named, x=_simple(words, first), y=_simple(words, second))
    return named


def _simple(words: Words, colour: str) -> str:
    return words.choose(("the {c} {n}", "the {c} {n}", "the {c} one", "the {n} in {c}", "{c}")).format(
        c=colour, n=_noun(words)
    )


def _others(words: Words, colour: str) -> tuple[str, str]:
    """Draw two other colours of blocks than one of these names."""
    own = next((each for each in COLOURS if colour in (each, *COLOUR_NAMES[each])), None)
    left = [each for each in COLOURS if each != own]
    words.random.shuffle(left)
    return _any_name(words, left[0]), _any_name(words, left[1])


def _instruction(words: Words, task: str, thing: str) -> str:
    verbs = BOOK.verbs[task]
    forms = verbs.train if words.split == "train" or words.chance(0.6) else verbs.test
    return words.choose(forms).format(o=thing)


def _said(words: Words, task: str, thing: str) -> str:
    """Say a task with an object: as an instruction, most of the time."""
    if words.chance(FRONTED):
        return words.pattern(BOOK.fronted).format(o=thing, p=words.choose(BOOK.pronouns[task]))
    return (
        _stated(words, BOOK.statements, task, thing)
        if words.chance(STATED)
        else _instruction(words, task, thing)
    )


def _stated(words: Words, patterns: Patterns, task: str, thing: str) -> str:
    done, doing = words.choose(BOOK.participles[task]), words.choose(BOOK.gerunds[task])
    return words.pattern(patterns).format(o=thing, done=done, doing=doing)


def _forbidden(words: Words, task: str, thing: str) -> str:
    if words.chance(STATED):
        return _stated(words, BOOK.prohibitions, task, thing)
    return words.pattern(BOOK.forbidden).format(w=_instruction(words, task, thing))


def _negation(words: Words, goal: Goal, colour: str) -> str:
    """Say a goal beside what is not meant: another object, or another task with the same one."""
    thing, (other, another) = _object(words, colour, "plain"), _others(words, colour)
    if words.chance(0.4):
        named = words.pattern(BOOK.contrasts).format(o=_simple(words, colour), x=_simple(words, other))
        return _instruction(words, goal.task, named)
    task = goal.task if words.chance(0.5) else words.choose(TASKS)
    if task != goal.task:
        return _changed(words, goal.task, task, thing)
    return words.pattern(BOOK.refusals).format(
        w=_instruction(words, task, _simple(words, other)),
        v=_said(words, goal.task, thing),
        x=_simple(words, other),
        y=_simple(words, another),
    )


def _changed(words: Words, task: str, refused: str, thing: str) -> str:
    """Say a task beside another one with the same object: that one first by the object's name, or as "it"."""
    if words.chance(0.3):
        first, meant = _instruction(words, refused, thing), words.choose(BOOK.pronouns[task])
        return words.choose(("don't {w}, {v}", "do not {w}, {v}", "don't {w} but {v}")).format(
            w=first, v=meant
        )
    return words.pattern(BOOK.changes).format(
        v=_instruction(words, task, thing),
        q=words.choose(BOOK.pronouns[refused]),
        doing=words.choose(BOOK.gerunds[refused]),
    )


def _vague(words: Words) -> str:
    one, other = words.random.choice(COLOURS, 2, replace=False)
    return words.pattern(BOOK.vague).format(n=_noun(words), c=one, d=other)


def _absent(words: Words) -> str:
    return words.choose(names("absent", "train", "plain"))


def _never(words: Words, colour: str) -> str:
    return words.choose(BOOK.never["absent" if words.chance(0.3) else colour])


def _unknown_somewhere(words: Words, goal: Goal) -> str:
    """Say a goal with an unknown word for the colour; else for the verb or the noun."""
    place = words.random.random()
    if place < 0.7:
        return _said(words, goal.task, _object(words, unknown(words), "landmark-"))
    if place < 0.85:
        return f"{unknown(words)} {_object(words, goal.colour, 'plain')}"
    return _instruction(words, goal.task, f"the {goal.colour} {unknown(words)}")


def _other_verb(words: Words, goal: Goal) -> str:
    other = _others(words, goal.colour)[0]
    return words.choose(BOOK.other_verbs).format(
        o=_object(words, goal.colour, "plain"), x=_simple(words, other)
    )


def _nonsense(words: Words) -> str:
    kind = words.random.random()
    if kind < 0.4:
        return words.pattern(BOOK.questions)
    count = int(words.random.integers(1, 8))
    if kind < 0.7:
        return " ".join(unknown(words) for _ in range(count))
    if kind < 0.8:
        return "".join(words.choose(list("0123456789.,?!-+*/ ")) for _ in range(2 * count))
    return " ".join(
        words.choose((*COLOURS, "block", "the", "and", "it", "not", "next", "to")) for _ in range(count)
    )


def _framed(words: Words, sentence: str) -> str:
    return sentence if words.chance(0.3) else words.pattern(BOOK.frames).format(v=sentence)


def _finished(words: Words, sentence: str) -> str:
    """Now and then misspell a word that is no colour, and close the sentence with a sign."""
    if words.split == "train" and words.chance(SLIP):
        parts = sentence.split(" ")
        index = int(words.random.integers(len(parts)))
        if len(parts[index]) > 4 and parts[index].isalpha() and not any(c in parts[index] for c in COLOURS):
            wrong = slip(words, parts[index])
            parts[index] = parts[index] if wrong in real_words() else wrong
        sentence = " ".join(parts)
    return sentence + (words.choose((".", "!", "", "?", " .")) if words.chance(SIGN) else "")


def _misspelt(words: Words, goal: Goal, sentence: str) -> str:
    return sentence.replace(goal.colour, typo(words, goal.colour))

"""Skills, the tasks that are made of them, and how people phrase these."""

import itertools
from typing import NamedTuple

BLOCKS = ("red", "green", "blue")
ZONES = ("purple", "white")
# The library of skills; `nothing` is what is left when a task is done.
SKILLS = ("reach", "pick", "push", "place", "navigate", "open", "nothing")


class Step(NamedTuple):
    """One skill on one target: a block, a zone, `tray` or `drawer`; `place` puts what is held there."""

    skill: str
    target: str

    def __str__(self) -> str:
        if self == NOTHING:
            return "nothing more"
        thing = f"{self.target} block" if self.target in BLOCKS else self.target
        if self.skill == "place":
            return f"place {'on' if self.target in BLOCKS else 'in'} {thing}"
        return f"navigate to {self.target} zone" if self.skill == "navigate" else f"{self.skill} {thing}"


class Aim(NamedTuple):
    """One thing to be achieved: `put` a block somewhere, or a skill of one step."""

    verb: str
    thing: str
    # Where `put` puts it.
    place: str = ""


# What a command asks for, one after the other.
Task = tuple[Aim, ...]

NOTHING = Step("nothing", "")
STEPS = (
    *(Step(skill, block) for skill in ("reach", "pick", "push") for block in BLOCKS),
    *(Step("place", place) for place in ("tray", "drawer", *BLOCKS)),
    *(Step("navigate", zone) for zone in ZONES),
    Step("open", "drawer"),
    NOTHING,
)
# The most steps of a task.
LONGEST = 3

_LAST = (
    *(Aim(verb, block) for verb in ("reach", "pick", "push") for block in BLOCKS),
    *(Aim("navigate", zone) for zone in ZONES),
)
_OPEN = Aim("open", "drawer")
_STACKS = tuple(Aim("put", *pair) for pair in itertools.permutations(BLOCKS, 2))
_TRAYS = tuple(Aim("put", block, "tray") for block in BLOCKS)
# Every task. A push can't be seen, nor where the hand has been: they come last.
TASKS: tuple[Task, ...] = (
    *((aim,) for aim in (*_LAST, _OPEN, *_TRAYS, *_STACKS)),
    *((Aim("put", block, "drawer"),) for block in BLOCKS),
    *((_OPEN, aim) for aim in _LAST),
    *((first, aim) for first in (*_TRAYS, *_STACKS) for aim in _LAST if aim.thing not in first),
)

# The last phrasing of each is for evaluation alone, the others for training.
_PHRASES = {
    "reach": ("reach the {a} block", "touch the {a} cube", "go to the {a} block", "touch the {a} block"),
    "pick": ("pick up the {a} block", "lift the {a} cube", "grab the {a} block", "lift the {a} block"),
    "push": (
        "push the {a} block forward",
        "slide the {a} cube forward",
        "shove the {a} block away",
        "push the {a} cube away",
    ),
    "navigate": (
        "move to the {a} zone",
        "go over to the {a} spot",
        "hover over the {a} zone",
        "move over the {a} spot",
    ),
    "open": ("open the drawer", "pull the drawer open", "pull out the drawer", "open up the drawer"),
    "tray": (
        "put the {a} block into the tray",
        "place the {a} cube in the tray",
        "drop the {a} block in the tray",
        "put the {a} cube in the tray",
    ),
    "drawer": (
        "put the {a} block into the drawer",
        "place the {a} cube in the drawer",
        "stow the {a} block in the drawer",
        "put the {a} cube in the drawer",
    ),
    "stack": (
        "stack the {a} block on the {b} one",
        "put the {a} cube on top of the {b} one",
        "place the {a} block onto the {b} block",
        "stack the {a} cube on top of the {b} block",
    ),
}
_JOINED = (
    "{0}, then {1}",
    "first {0}, then {1}",
    "{0} and then {1}",
    "{0}, and after that {1}",
    "first {0} and then {1}",
)


def phrasings(task: Task, *, held_out: bool = False) -> list[str]:
    """Return the sentences that ask for a task in training, or those that only evaluation uses."""
    forms = [
        [form.format(a=aim.thing, b=aim.place) for form in _forms(aim, held_out=held_out)] for aim in task
    ]
    if len(forms) == 1:
        return forms[0]
    joined = _JOINED[-1:] if held_out else _JOINED[:-1]
    return [form.format(*parts) for form in joined for parts in itertools.product(*forms)]


def kind(aim: Aim) -> str:
    """Return what an aim is about: a skill, or `tray`, `drawer` or `stack` for where a block is put."""
    if aim.verb != "put":
        return aim.verb
    return aim.place if aim.place in ("tray", "drawer") else "stack"


def _forms(aim: Aim, *, held_out: bool) -> tuple[str, ...]:
    return _PHRASES[kind(aim)][-1:] if held_out else _PHRASES[kind(aim)][:-1]

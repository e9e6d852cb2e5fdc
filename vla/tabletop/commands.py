"""The goals that the robot can be given, and how people phrase them."""

from typing import NamedTuple

TASKS = ("reach", "lift", "push")
COLOURS = ("red", "green", "blue", "yellow")
# Task -> the skill that it shows, as libraries of skills call it.
SKILLS = {"reach": "reach", "lift": "pick", "push": "push"}


class Goal(NamedTuple):
    """One task on one block: ``task`` of ``TASKS``, ``colour`` of ``COLOURS``."""

    task: str
    colour: str


# Every goal, task by task; a goal's index here is its index in a data set.
GOALS = tuple(Goal(task, colour) for task in TASKS for colour in COLOURS)

# Polite and temporal filler appears in every task, so that it carries no meaning of its own.
PHRASES = {
    "reach": (
        "reach the {colour} block",
        "touch the {colour} cube",
        "move to the {colour} block",
        "go to the {colour} cube",
        "please reach for the {colour} cube",
        "now touch the {colour} block",
        "could you go to the {colour} block",
        "can you please move to the {colour} cube now",
        "robot, touch the {colour} one",
    ),
    "lift": (
        "lift the {colour} block",
        "pick up the {colour} cube",
        "grasp the {colour} block and raise it",
        "grab the {colour} cube",
        "please lift up the {colour} cube",
        "now pick up the {colour} block",
        "could you grab the {colour} block",
        "can you please raise the {colour} cube now",
        "robot, lift the {colour} one",
    ),
    "push": (
        "push the {colour} block forward",
        "slide the {colour} cube forward",
        "push the {colour} cube away from the robot",
        "shove the {colour} block away",
        "please push the {colour} cube away",
        "now slide the {colour} block forward",
        "could you shove the {colour} cube forward",
        "can you please slide the {colour} cube away from the robot now",
        "robot, push the {colour} one forward",
    ),
}

# Never used in training; every word but the grammar occurs there, in other sentences of the same task.
HELD_OUT = {
    "reach": (
        "please touch the {colour} block",
        "now go to the {colour} cube",
        "could you reach the {colour} cube",
        "robot, please move to the {colour} one",
    ),
    "lift": (
        "please pick up the {colour} block",
        "now grab the {colour} cube",
        "could you lift the {colour} cube",
        "robot, please raise the {colour} one",
    ),
    "push": (
        "please push the {colour} block forward",
        "now shove the {colour} cube away",
        "could you slide the {colour} block away from the robot",
        "robot, please push the {colour} one away",
    ),
}


def parse(text: str) -> Goal:
    """Return the goal that is written as ``lift blue``.

    Raises:
        ValueError: there is no such goal; the message lists those there are.
    """
    named = {" ".join(goal): goal for goal in GOALS}
    if text not in named:
        raise ValueError(f"unknown goal {text!r}; valid: {', '.join(named)}")
    return named[text]


def phrase(goal: Goal, index: int) -> str:
    """Say ``goal`` in its training phrasing number ``index`` (wraps round)."""
    return _say(PHRASES, goal, index)


def held_out(goal: Goal, index: int) -> str:
    """Say ``goal`` in a phrasing that training never uses, number ``index`` (wraps round)."""
    return _say(HELD_OUT, goal, index)


def _say(phrasings: dict[str, tuple[str, ...]], goal: Goal, index: int) -> str:
    forms = phrasings[goal.task]
    return forms[index % len(forms)].format(colour=goal.colour)

"""What a `grounded` reads of tasks and colours that training never commands together."""

import numpy as np
import pytest
import torch

from vla.models import build
from vla.models.grounded import Model
from vla.tabletop.commands import COLOURS, TASKS, Goal, parse
from vla.tabletop.language import IMPOSSIBLE, KINDS, command, impossible
from vla.training import reading, setup
from vla.training.settings import Settings

STEPS, SENTENCES = 3000, 120
# A command below this is held.
LIMIT = 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    "excluded",
    [
        ("lift blue", "push red", "reach green"),
        ("reach red", "lift yellow", "push blue"),
        ("lift red", "lift green", "push yellow"),
    ],
)
def test_combinations_never_commanded_are_understood_and_what_means_none_is_held(data, excluded):
    settings = Settings(data=data, excluded_goals=excluded, validation_share=0.3)
    batches = setup.demonstrated(settings)
    torch.manual_seed(0)
    model = build("grounded", batches.config.model, batches.config.sizes())
    assert isinstance(model, Model)
    reading.train(batches, model, STEPS)
    tokenizer = batches.config.command_tokenizer()

    def share(sentences: list[str], goals: list[Goal | None]) -> float:
        """Return the share of sentences that are read as these goals."""
        ids, mask = (
            torch.from_numpy(np.stack(part)) for part in zip(*map(tokenizer, sentences), strict=True)
        )
        with torch.inference_mode():
            read = model.read(ids, mask)
        acts = 1 - read.skills.softmax(-1)[:, 0] >= LIMIT
        skills, objects = read.skills[:, 1:].argmax(-1), read.objects[:, 1:].argmax(-1)
        answers = [
            Goal(TASKS[skill], COLOURS[colour]) if act else None
            for act, skill, colour in zip(acts, skills, objects, strict=True)
        ]
        return sum(answer == goal for answer, goal in zip(answers, goals, strict=True)) / len(goals)

    random = np.random.default_rng(7)
    goals = [parse(excluded[index % len(excluded)]) for index in range(SENTENCES)]
    understood = {
        kind: share([command(random, goal, kind, "test") for goal in goals], list(goals)) for kind in KINDS
    }
    held = {
        kind: share([impossible(random, kind, "test") for _ in goals], [None] * len(goals))
        for kind in IMPOSSIBLE
    }
    print(excluded, understood, held)
    assert min(understood[kind] for kind in ("plain", "synonym", "negation", "landmark")) >= 0.9
    assert sum(held.values()) / len(held) >= 0.95

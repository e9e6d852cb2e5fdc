"""What policies are calibrated, tuned and compared on: the expert's episodes on the tabletop, rendered."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
from tqdm import tqdm

from export.source import Observation, Source
from vla.tabletop.commands import GOALS
from vla.tabletop.expert import expert_action
from vla.tabletop.language import Split, draw
from vla.tabletop.looks import PLAIN, draw_look
from vla.tabletop.simulator import ACTION_HIGH, Tabletop
from vla_client.observation import encode
from vla_runtime.observation import Row

# Share of the commands that call for nothing, of the pictures in a look of their own, and the noise of the
# executed action as a share of its bound.
IMPOSSIBLE, VARIED, NOISE = 0.2, 0.5, 0.3
# Steps of an episode, and every which of them is kept.
STEPS, EVERY = 24, 3


def observed(source: Source, count: int, first_seed: int, split: Split) -> list[Observation]:
    """Return `count` moments of the expert's episodes, as the policy's one camera shows them.

    Commands are drawn anew at each moment, most of them of another goal than the expert pursues; those of the
    split `test` are in patterns that training never uses.

    Raises:
        ValueError: the policy has more cameras than the tabletop, or no state of its kind.
    """
    if len(source.cameras) != 1 or source.history != 1 or source.state is None:
        raise ValueError(f"{source.name} does not see the tabletop: one camera, one step and a state")
    [camera] = source.cameras
    found = _moments(max(camera.width, camera.height), first_seed, split)
    bar = tqdm(range(count), unit="scene", desc=f"scenes ({split})", disable=None)
    return [
        Observation({camera.name: picture}, said, tuple(map(float, state)))
        for _, (picture, said, state) in zip(bar, found, strict=False)
    ]


def rows(source: Source, observations: list[Observation]) -> list[Row]:
    """Return observations as requests, a seed of its own each."""
    [camera] = source.cameras
    return [
        {
            "image": encode(np.asarray(one.images[camera.name]), "png"),
            "command": one.command,
            "state": one.state,
            "seed": seed,
        }
        for seed, one in enumerate(observations)
    ]


def _moments(size: int, first_seed: int, split: Split) -> Iterator[tuple[np.ndarray, str, np.ndarray]]:
    """Yield a picture uint8 [size, size, 3], a command and the state float32 [4], without end."""
    with closing(Tabletop()) as env:
        for seed in range(first_seed, first_seed + (1 << 20)):
            random, goal = np.random.default_rng([seed, 3]), GOALS[seed % len(GOALS)]
            env.reset(seed, goal)
            for step in range(STEPS):
                if step % EVERY == 0:
                    env.look = draw_look(random, env.blocks()) if random.random() < VARIED else PLAIN
                    wanted = None if random.random() < IMPOSSIBLE else GOALS[random.integers(len(GOALS))]
                    yield env.render(size), draw(random, wanted, split), env.state()
                env.step(expert_action(env, goal) + random.normal(0, NOISE, 4) * ACTION_HIGH)

"""From recorded data to batches: what robots saw, were told and did, of one data set or of a mixture."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vla import checkpoint
from vla.checkpoint import Config, Frame
from vla.data.frames import cameras
from vla.data.mixture import Mixture, Samples, widened, widened_std
from vla.models import Batch, module_of
from vla.training.pretrained import tokenizer_values
from vla.training.progress import plain
from vla.training.settings import Settings
from vla_runtime.errors import InvalidValue, SpecError
from vla_runtime.preprocessing import normalise_pictures
from vla_runtime.spec import ContinuousSpace, Dimension, DiscreteSpace, Safety, Statistics, Vector

# Of units nothing is recorded.
UNIT = "1"
VALIDATE = 2


@dataclass(frozen=True)
class RecordedBatches:
    """Draws batches of a mixture; the same `(seed, step)` always gives the same one.

    A frame has the one command that it was recorded with: to no other one is it known what is right.
    """

    mixture: Mixture
    config: Config
    seed: int
    # Nothing is recorded that calls for abstaining.
    selective = False

    def __post_init__(self) -> None:
        name, model = self.config.architecture, module_of(self.config.architecture).Model
        if model.privileged or model.selective:
            learned = ", ".join(model.privileged)
            raise SpecError(
                f"{name} learns from {learned}, which no robot records: take another --architecture"
            )
        if not (model.masked or self.mixture.complete):
            raise SpecError(
                f"some data sets lack dimensions of the mixture's action {', '.join(self.mixture.action)}, "
                f"and {name} can't leave out what is missing: take another --architecture"
            )

    @property
    def space(self) -> ContinuousSpace:
        """The policy's action space."""
        if isinstance(self.config.action, DiscreteSpace):
            raise SpecError("recorded actions are continuous, the policy's discrete")
        return self.config.action

    @property
    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames that are drawn, and those that are held out, of all data sets: int64 [M]."""
        return np.concatenate(self.mixture.trained), np.concatenate(self.mixture.held_out)

    def train(self, step: int, frames: int, commands: int) -> Batch:
        """Draw `frames` training frames, whatever number of commands is asked for."""
        return self._batch(self.mixture.batch(step, frames))

    def validation(self, frames: int, commands: int) -> Batch:
        """Draw frames of the episodes that are held out, the same ones every time; data sets by weight."""
        random = np.random.default_rng([self.seed, VALIDATE])
        held = self.mixture.held_out
        dataset = random.choice(len(held), frames, p=self.mixture.sampler.weights)
        row = np.array([random.choice(held[each]) for each in dataset])
        return self._batch(self.mixture.gather(dataset, row))

    def example(self) -> Frame:
        """Return the first frame that is held out, as a client would send it to the policy."""
        part, row = self.mixture.parts[0], self.mixture.held_out[0][:1]
        sample = self.mixture.gather(np.zeros(1, np.int64), row)
        state = np.zeros(0, np.float32)
        if self.config.state:
            vector = self.config.state
            state = (sample.state[0] * vector.scale + vector.shift).astype(np.float32)
            has = part.state >= 0
            state[has] = part.frames.state[row[0]][part.state[has]]
        return Frame(sample.images[0].transpose(0, 2, 3, 1), sample.commands[0], state)

    @cached_property
    def _tokens(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Tokens and mask of the commands so far."""
        return {}

    @cached_property
    def _tokenizer(self) -> checkpoint.CommandTokenizer:
        return self.config.command_tokenizer()

    def _tokenized(self, command: str) -> tuple[np.ndarray, np.ndarray]:
        if command not in self._tokens:
            try:
                self._tokens[command] = self._tokenizer(command)
            except InvalidValue as error:
                raise SpecError(f"a command {error}: give a larger --context-length") from error
        return self._tokens[command]

    def _batch(self, samples: Samples) -> Batch:
        """Return what there is to learn from samples; what no robot records is 0."""
        count = len(samples.actions)
        views = len(self.config.cameras)
        said = [self._tokenized(command) for command in samples.commands]
        ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*said, strict=True))
        longest = max(1, int(mask.sum(1).max()))
        pictures = normalise_pictures(torch.from_numpy(samples.images), self.config.cameras)
        seen = torch.from_numpy(samples.seen.copy())[:, :, None, None, None]
        nothing, index = torch.zeros(count, 1, 3), torch.zeros(count, dtype=torch.int64)
        return Batch(
            images=pictures * seen,
            state=torch.from_numpy(samples.state),
            input_ids=ids[:, :longest],
            attention_mask=mask[:, :longest],
            actions=torch.from_numpy(samples.actions),
            skill=index,
            target=index,
            objects=nothing,
            boxes=torch.zeros(count, views, 1, 4),
            hand=nothing[:, 0],
            hand_points=torch.zeros(count, views, 2),
            done=torch.zeros(count, dtype=torch.bool),
            possible=torch.ones(count, dtype=torch.bool),
            shown=torch.ones(count, dtype=torch.bool),
            valid=torch.from_numpy(samples.valid),
        )


def describe(settings: Settings, mixture: Mixture, model: dict[str, Any]) -> Config:
    """Return what the policy will be; `model` are the values of its architecture's `Config`."""
    action = _vector(mixture, "action", settings)
    return Config(
        name=settings.architecture,
        architecture=settings.architecture,
        model=model,
        cameras=cameras(mixture.cameras, settings.recorded.image_size),
        **tokenizer_values(settings.architecture, settings.pretrained, settings.context_length),
        state=Vector(**_vector(mixture, "state", settings)) if mixture.state else None,
        action=ContinuousSpace(
            **action,
            horizon=settings.recorded.horizon,
            control_hz=mixture.parts[0].frames.about.control_hz,
        ),
        # What it means to stand still, nobody says: a chunk that can't be clamped is refused.
        safety=Safety(mode="clamp"),
        training=plain(settings),
    )


def _vector(mixture: Mixture, what: str, settings: Settings) -> dict[str, Any]:
    """Return dimensions bounded by what was recorded, and their statistics."""
    summary = mixture.summary(what)
    low, high = widened(summary, "min", "max")
    q01, q99 = widened(summary, "q01", "q99")
    names = getattr(mixture, what)
    bounds = zip(names, low.tolist(), high.tolist(), strict=True)
    return {
        "dimensions": tuple(Dimension(name=name, unit=UNIT, low=a, high=b) for name, a, b in bounds),
        "normalisation": settings.normalisation,
        "statistics": Statistics(
            mean=tuple(summary["mean"].tolist()),
            std=tuple(widened_std(summary).tolist()),
            q01=tuple(q01.tolist()),
            q99=tuple(q99.tolist()),
        ),
    }

"""From demonstrations to batches of symbols: which steps each command still needs, by name."""

from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from vla.checkpoint import Config
from vla.models import Batch
from vla.tabletop.commands import GOALS
from vla.tabletop.labels import TARGETS
from vla.tabletop.steps import PLAN, STEPS, WAIT, remaining
from vla.training.batches import Batches
from vla_runtime.spec import ContinuousSpace, DiscreteSpace, Safety, Statistics


def symbolic(config: Config) -> Config:
    """Return what a policy is that answers the steps in place of actions."""
    space = DiscreteSpace(vocabulary=STEPS, horizon=PLAN, control_hz=config.action.control_hz)
    return msgspec.structs.replace(
        config,
        action=space,
        model=config.model | {"symbolic": True},
        safety=Safety(mode="hold", hold_action=WAIT),
    )


@dataclass(frozen=True)
class SymbolicBatches(Batches):
    """Draws batches whose frames call for steps."""

    @property
    def space(self) -> ContinuousSpace:
        """The space of the demonstrated actions, which are not learned from."""
        about = self.dataset.description
        return ContinuousSpace(
            dimensions=about.action,
            normalisation="bounds",
            statistics=Statistics(),
            horizon=about.horizon,
            control_hz=about.control_hz,
        )

    def _batch(
        self,
        rows: np.ndarray,
        goals: np.ndarray,
        phrases: list[list[tuple[np.ndarray, np.ndarray]]],
        wordings: np.ndarray,
        commanded: np.ndarray | None = None,
    ) -> Batch:
        """Add the steps to a batch; see `Batches`. What is commanded is what they are for."""
        batch = super()._batch(rows, goals, phrases, wordings, commanded)
        steps = []
        for index, goal in enumerate(goals.flat):
            row = rows[index // goals.shape[1]]
            hand = tuple(self.dataset.state[row].tolist())
            block = tuple(self.dataset.blocks[row, TARGETS[goal]].tolist())
            steps.append(remaining(GOALS[goal], hand, block, done=bool(batch.done[index])))
        return batch._replace(symbols=torch.tensor(steps))

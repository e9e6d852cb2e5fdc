"""The three kinds of action space. In JSON a space says its `kind`: `continuous`, `binned` or `discrete`."""

from typing import Literal, TypeAlias

import numpy as np

from vla_runtime import rotations
from vla_runtime.vectors import Part, Vector, require


class Rotation(Part, frozen=True):
    """Dimensions that are one rotation together, made valid after every answer; see `rotations.py`."""

    kind: Literal["quaternion", "rotation_6d"]
    # Names of its dimensions: 4, or 6 (first column of the rotation matrix, then the second).
    dimensions: tuple[str, ...]


class ContinuousSpace(Vector, frozen=True, kw_only=True, tag_field="kind", tag="continuous"):
    """A chunk of T actions of A continuous dimensions each."""

    # Actions in a chunk [steps].
    horizon: int
    # Rate at which the robot is to execute them [Hz].
    control_hz: float
    rotations: tuple[Rotation, ...] = ()
    # Whether a value beyond its bounds means the bound: of a policy that was trained on actions which end
    # there. It is cut without being called a violation.
    saturating: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_timing(self.horizon, self.control_hz)
        taken: list[str] = []
        for rotation in self.rotations:
            self._check_rotation(rotation)
            taken += rotation.dimensions
        require(len(taken) == len(set(taken)), f"a dimension may belong to one rotation only, got {taken}")

    @property
    def width(self) -> int:
        """A."""
        return len(self.dimensions)

    @property
    def output(self) -> str:
        """Name of the artifact's output that holds the chunk."""
        return "actions"

    @property
    def rotating(self) -> frozenset[str]:
        """Names of the dimensions that are part of a rotation."""
        return frozenset(name for rotation in self.rotations for name in rotation.dimensions)

    def valid_rotations(self, actions: np.ndarray) -> np.ndarray:
        """Make every declared rotation one again: float32 [..., A], NaN in one that can't be mended."""
        mended = actions.copy()
        for rotation in self.rotations:
            places = [self.names.index(name) for name in rotation.dimensions]
            _, make_valid = rotations.KINDS[rotation.kind]
            mended[..., places] = make_valid(actions[..., places])
        return mended

    def _check_rotation(self, rotation: Rotation) -> None:
        needed, _ = rotations.KINDS[rotation.kind]
        missing = [name for name in rotation.dimensions if name not in self.names]
        require(not missing, f"a {rotation.kind} names {missing}; the dimensions are {self.names}")
        require(
            len(rotation.dimensions) == needed,
            f"a {rotation.kind} has {needed} dimensions, got {rotation.dimensions}",
        )
        for dimension in self.dimensions:
            require(
                dimension.name not in rotation.dimensions or (dimension.low <= -1 and dimension.high >= 1),
                f"{dimension.name}: part of a {rotation.kind}, whose bounds must not be within -1 and 1, "
                f"got {dimension.low} and {dimension.high}",
            )


class BinnedSpace(ContinuousSpace, frozen=True, kw_only=True, tag="binned"):
    """Actions that the policy chose among uniform bins over [-1, 1] of every normalised dimension.

    As in RT-1 (Brohan et al. 2022) and OpenVLA (Kim et al. 2024). The artifact decodes its bins itself, with
    `actions.decode_bins`: what it returns are normalised actions.
    """

    # Bins a dimension.
    bins: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bins >= 2, f"bins must be 2 at least, got {self.bins}")
        require(
            self.normalisation in ("bounds", "quantiles"),
            "binned actions need bounds or quantiles: any other normalisation leaves values outside the bins",
        )
        for dimension in self.dimensions:
            require(
                dimension.name not in self.passthrough or (dimension.low >= -1 and dimension.high <= 1),
                f"{dimension.name}: not normalised, and its bounds {dimension.low} and {dimension.high} "
                f"reach beyond the bins, which end at -1 and 1",
            )


class DiscreteSpace(Part, frozen=True, kw_only=True, tag_field="kind", tag="discrete"):
    """A chunk of T symbolic actions, each one of V names, such as `pick_up` or `navigate_to`."""

    vocabulary: tuple[str, ...]
    # Actions in a chunk [steps].
    horizon: int
    # Rate at which the robot is to execute them [Hz].
    control_hz: float

    def __post_init__(self) -> None:
        _check_timing(self.horizon, self.control_hz)
        require(
            len(self.vocabulary) >= 2
            and all(self.vocabulary)
            and len(set(self.vocabulary)) == len(self.vocabulary),
            f"vocabulary needs two distinct names at least, got {self.vocabulary}",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The vocabulary, in order."""
        return self.vocabulary

    @property
    def width(self) -> int:
        """V."""
        return len(self.vocabulary)

    @property
    def output(self) -> str:
        """Name of the artifact's output that holds the chunk."""
        return "logits"

    def index(self, name: str) -> int:
        """Return a name's place in the vocabulary.

        Raises:
            SpecError: the vocabulary has no such action; the message lists those there are.
        """
        require(name in self.vocabulary, f"unknown action {name!r}; available: {', '.join(self.vocabulary)}")
        return self.vocabulary.index(name)


ActionSpace: TypeAlias = ContinuousSpace | BinnedSpace | DiscreteSpace


def _check_timing(horizon: int, control_hz: float) -> None:
    require(horizon > 0, f"horizon must be positive, got {horizon}")
    require(control_hz > 0, f"control_hz must be positive, got {control_hz}")

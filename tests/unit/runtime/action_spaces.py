"""Small action spaces, the specs around them, and outputs of a policy."""

from typing import Any

import numpy as np

from vla_runtime.artifact import Outputs
from vla_runtime.spec import (
    ActionSpace,
    ArtifactSpec,
    Camera,
    ContinuousSpace,
    Dimension,
    DiscreteSpace,
    Example,
    PolicySpec,
    Safety,
    Statistics,
    Tokenizer,
)

QUATERNION = ("qx", "qy", "qz", "qw")
COLUMNS = ("r11", "r21", "r31", "r12", "r22", "r32")
NAMES = ("navigate_to", "pick_up", "place_at", "open", "close", "stop")
SYMBOLS = DiscreteSpace(vocabulary=NAMES, horizon=2, control_hz=1.0)


def space(kind: type[ContinuousSpace] = ContinuousSpace, names: tuple[str, ...] = (), **fields: Any) -> Any:
    """Make a space of a 3 cm step, a gripper in [0, 1], and further dimensions in [-1, 1]."""
    dimensions = (
        Dimension(name="x", unit="m", low=-0.03, high=0.03),
        Dimension(name="gripper", unit="1", low=0.0, high=1.0),
        *(Dimension(name=name, unit="1", low=-1.0, high=1.0) for name in names),
    )
    more = len(names)
    statistics = Statistics(
        mean=(0.002, 0.7, *[0.0] * more),
        std=(0.01, 0.4, *[1.0] * more),
        q01=(-0.02, 0.1, *[-1.0] * more),
        q99=(0.025, 0.9, *[1.0] * more),
    )
    return kind(
        **{"dimensions": dimensions, "normalisation": "bounds", "statistics": statistics}
        | {"horizon": 2, "control_hz": 10.0}
        | fields
    )


def spec(action: ActionSpace, safety: Safety | None = None, **artifact: Any) -> PolicySpec:
    return PolicySpec(
        name="tiny",
        version="1.0",
        architecture="any",
        cameras=(Camera(name="front", width=8, height=8),),
        tokenizer=Tokenizer(file="t.json", context_length=8, pad_id=0),
        state=None,
        action=action,
        safety=safety or Safety(),
        artifact=ArtifactSpec(
            **{"file": "policy.ts", "buckets": (1,), "outputs": (action.output, *artifact.get("extras", ()))}
            | {"command": ("words",), "inputs": ("image.front", "command.words")}
            | artifact
        ),
        example=Example(images={}, command="go", state=(), seed=0, actions=()),
        provenance={},
    )


# A robot that reports nothing, and says nothing of what it does.
NOTHING = np.zeros(0, np.float32)
UNKNOWN = np.full(1, np.nan, np.float32)


def outputs(values: Any, confidence: float | None = None, **extras: Any) -> Outputs:
    return Outputs(
        np.asarray(values, np.float32), confidence, None, {n: np.asarray(v) for n, v in extras.items()}
    )

"""Why the policy did that: one decision as a record for programs, and as a sentence for people.

Everything in it is what the policy read, computed and was limited to in this very request.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_runtime.actions import ActionChunk
from vla_runtime.safety import SafetyReport
from vla_runtime.spec import DiscreteSpace, Extra, PolicySpec
from vla_runtime.staging import Inputs

# A sentence names lists of so many numbers at most, and so many broken limits.
LONGEST, MOST = 4, 3


def record(chunk: ActionChunk, inputs: Inputs, spec: PolicySpec) -> dict[str, Any]:
    """Return what was seen, understood, decided and limited.

    Args:
        chunk: what leaves
        inputs: what the policy computed it from
        spec: what the numbers mean
    """
    return {
        "sentence": sentence(chunk, spec.artifact.extras),
        "seen": {"command": inputs.command, "cameras": _cameras(inputs, spec), "state": _state(inputs, spec)},
        "understood": {"confidence": chunk.confidence, **chunk.extras},
        "decided": {"seconds": round(len(chunk.actions) / chunk.space.control_hz, 6), **_decided(chunk)},
    }


def sentence(chunk: ActionChunk, extras: Mapping[str, Extra]) -> str:
    """Say one decision in a few plain sentences."""
    sure = "It does not say how sure it is."
    if chunk.confidence is not None:
        sure = f"It is {100 * chunk.confidence:.0f} % sure."
    found = [f"{name} {_said(value, extras[name].unit)}" for name, value in chunk.extras.items()]
    known = [one for one in found if not one.endswith(" ")]
    understood = f" It understood: {'; '.join(known)}." if known else ""
    return f"{sure}{understood} {_moves(chunk)} {_limits(chunk.safety)}"


def pictures(inputs: Inputs, spec: PolicySpec) -> list[np.ndarray]:
    """Return the newest picture a camera, as the policy saw it: uint8 [3, H, W]."""
    taken = [inputs.tensors[f"image.{camera.name}"] for camera in spec.cameras]
    return [picture if spec.history == 1 else picture[-1] for picture in taken]


def _decided(chunk: ActionChunk) -> dict[str, Any]:
    """Return the first action, and what the chunk comes to where a dimension says what its numbers mean.

    Changes add up, rates add up over time, and of positions the last one counts.
    """
    if isinstance(chunk.space, DiscreteSpace):
        return {"first": chunk.chosen[0], "whole": list(chunk.chosen)}
    steps_s = {"delta": 1.0, "velocity": 1 / chunk.space.control_hz}
    whole = {
        dimension.name: _rounded(
            values[-1] if dimension.meaning == "absolute" else values.sum() * steps_s[dimension.meaning]
        )
        for dimension, values in zip(chunk.space.dimensions, chunk.actions.T, strict=True)
        if dimension.meaning is not None
    }
    return {
        "first": dict(zip(chunk.space.names, map(_rounded, chunk.actions[0]), strict=True)),
        "whole": whole,
    }


def _moves(chunk: ActionChunk) -> str:
    count, seconds = len(chunk.actions), len(chunk.actions) / chunk.space.control_hz
    if isinstance(chunk.space, DiscreteSpace):
        return f"{count} actions in {seconds:.3g} s: {', then '.join(chunk.chosen)}."
    pairs = zip(chunk.space.dimensions, chunk.actions[0], strict=True)
    first = ", ".join(f"{dimension.name} {value:+.3g}{_after(dimension.unit)}" for dimension, value in pairs)
    return f"{count} actions in {seconds:.3g} s, the first: {first}."


def _limits(report: SafetyReport) -> str:
    wanted = report.saturated
    beyond = f" {100 * wanted:.0f} % of what it wanted lay beyond the bounds." if wanted else ""
    if report.status == "ok":
        return f"No limit acted.{beyond}"
    more = len(report.violations) - MOST
    broken = "; ".join(report.violations[:MOST]) + (f"; and {more} more" if more > 0 else "")
    done = "It was held" if report.status == "held" else "It was limited"
    return f"{done}: {broken}.{beyond}"


def _said(value: object, unit: str) -> str:
    """Say one of the policy's further outputs; nothing where it is too long."""
    values: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    if len(values) > LONGEST or any(isinstance(one, list) for one in values):
        return ""
    numbers = [one if isinstance(one, str) else f"{one:.3g}" for one in values]
    return ", ".join(numbers) + ("" if isinstance(values[0], str) else _after(unit))


def _after(unit: str) -> str:
    return "" if unit in ("", "1") else f" {unit}"


def _cameras(inputs: Inputs, spec: PolicySpec) -> dict[str, Any]:
    """Return what each camera's newest picture was to the policy: its size, its mean brightness in [0, 1]."""
    return {
        camera.name: {
            "width": picture.shape[2],
            "height": picture.shape[1],
            "brightness": _rounded(picture.mean() / 255),
        }
        for camera, picture in zip(spec.cameras, pictures(inputs, spec), strict=True)
    }


def _state(inputs: Inputs, spec: PolicySpec) -> dict[str, float]:
    if spec.state is None:
        return {}
    return dict(zip(spec.state.names, map(_rounded, inputs.state), strict=True))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")

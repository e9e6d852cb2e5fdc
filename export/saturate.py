"""A policy that was trained on actions normalised by their bounds, and whose own actions end there too."""

import msgspec

from vla_runtime.spec import ActionSpace, ContinuousSpace


def saturating(space: ActionSpace) -> ActionSpace:
    """Return the space, saturating where its own bounds normalise it: others reach beyond.

    Demonstrations that run at full speed sit on a bound, and a regression overshoots it now and then. Such an
    action means the bound. Called a violation, it would report an intervention with every answer; it is
    counted as saturated instead.
    """
    if not isinstance(space, ContinuousSpace) or space.normalisation != "bounds" or space.statistics.low:
        return space
    if any(dimension.relative for dimension in space.dimensions):
        return space
    return msgspec.structs.replace(space, saturating=True)

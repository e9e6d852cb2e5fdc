"""LeRobot's relative actions: differences from the state, which its processors add again (0.6)."""

from typing import Any

import msgspec

from export.errors import ExportError
from export.foreign.folder import CONFIG, STATE, Folder
from export.foreign.processors import POSTPROCESSOR, PREPROCESSOR, Step, converted

RELATIVE, ABSOLUTE = "relative_actions_processor", "absolute_actions_processor"


class Relative(msgspec.Struct):
    """The step that remembers the state, and says which actions are differences from it."""

    enabled: bool = False
    # Parts of names of actions that stay absolute.
    exclude_joints: list[str] = []
    action_names: list[str] | None = None


def places(folder: Folder) -> tuple[int, ...]:
    """Return the places of the actions that are differences from the state's dimension of the same place.

    Raises:
        ExportError: the folder's files contradict each other, or the state is too narrow.
    """
    step = _step(folder)
    said = bool(folder.config.get("use_relative_actions"))
    absolute = folder.after.get(ABSOLUTE)
    added = bool(absolute and absolute.config.get("enabled"))
    if not step.enabled == said == added:
        raise ExportError(
            f"{folder.path} contradicts itself: use_relative_actions is {said} in {CONFIG}, and `enabled` is "
            f"{step.enabled} of the step {RELATIVE!r} and {added} of {ABSOLUTE!r}"
        )
    if not said:
        return ()
    _check_order(folder, folder.before, PREPROCESSOR, (RELATIVE, "normalizer_processor"))
    _check_order(folder, folder.after, POSTPROCESSOR, ("unnormalizer_processor", ABSOLUTE))
    state = len(folder.state.dimensions)
    if state < folder.action_width:
        raise ExportError(
            f"{folder.path / CONFIG}: {folder.action_width} actions are differences from {STATE}, which has "
            f"{state} dimensions"
        )
    return tuple(place for place in range(folder.action_width) if _is_relative(step, place))


def all_by_default(folder: Folder) -> bool:
    """Whether names that are to stay absolute have no effect, since the folder names no actions."""
    step = _step(folder)
    return step.enabled and bool(step.exclude_joints) and step.action_names is None


def _step(folder: Folder) -> Relative:
    found = folder.before.get(RELATIVE)
    known: dict[str, Any] = found.config if found else {}
    return converted(folder.path / PREPROCESSOR, known, Relative)


def _is_relative(step: Relative, place: int) -> bool:
    names = step.action_names or []
    if place >= len(names):
        return True
    return not any(part and part.lower() in names[place].lower() for part in step.exclude_joints)


def _check_order(folder: Folder, steps: dict[str, Step], file: str, order: tuple[str, str]) -> None:
    if [name for name in steps if name in order] != list(order):
        raise ExportError(f"{folder.path / file} must have {order[0]!r} before {order[1]!r}")

"""What a right answer is: read by the robot's own client, held against the policy's own description."""

import json
import zipfile
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import requests
from numpy.typing import NDArray

from archive.errors import ArchiveError
from archive.read import Archive
from vla_client import ActionChunk, InvalidAnswer

# Share of a dimension's range that is rounding: float32 is sent with seven digits.
TOLERANCE = 1e-6
# How far the probabilities of all names may be from 1 together.
SUM_TOLERANCE = 1e-3


class ContractError(RuntimeError):
    """The policy's description can't be read, so no answer could be checked."""


class WrongAnswer(ValueError):
    """An answer breaks the contract; `kind` is the class that a report counts it under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read(body: bytes, content_type: str = "application/json") -> ActionChunk:
    """Read the body of an answer with status 200 as a robot does.

    Raises:
        WrongAnswer: of kind form: a robot would refuse it.
    """
    decode = msgspec.msgpack.decode if content_type == "application/msgpack" else msgspec.json.decode
    try:
        return ActionChunk.from_answer(decode(body))
    except (msgspec.DecodeError, InvalidAnswer) as error:
        raise WrongAnswer("form", str(error)) from error


def read_error(body: bytes) -> tuple[str, str]:
    """Return code and message of an error's body: the policy's own form, TorchServe's, or anything else."""
    try:
        parsed = msgspec.json.decode(body)
    except msgspec.DecodeError:
        parsed = None
    if isinstance(parsed, dict) and isinstance(parsed.get("error"), dict):
        return str(parsed["error"].get("code")), str(parsed["error"].get("message"))
    if isinstance(parsed, dict) and "type" in parsed:
        return str(parsed["type"]), str(parsed.get("message"))
    return "unreadable", repr(body[:100])


@dataclass(frozen=True, eq=False)
class Contract:
    """What the served policy takes and gives."""

    policy: str
    version: str
    cameras: tuple[str, ...]
    # Observation steps that a request brings.
    history: int
    # Whether a request says what the robot is told.
    takes_command: bool
    # float64 [S], physical units; S is 0 for a policy without state.
    state_low: NDArray[np.float64]
    state_high: NDArray[np.float64]
    # A names; all the names that a discrete policy chooses from.
    names: tuple[str, ...]
    # float64 [A], physical units; None for a discrete policy.
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    # T
    horizon: int
    # Rate at which the robot executes a chunk [Hz].
    control_hz: float

    @classmethod
    def of(cls, description: dict[str, Any]) -> Self:
        """Read a policy's description: the JSON of its `policy.json`.

        Raises:
            ContractError: something that a check needs is missing.
        """
        try:
            action = description["action"]
            discrete = action.get("kind") == "discrete"
            state = (description["state"] or {"dimensions": []})["dimensions"]
            return cls(
                policy=description["name"],
                version=description["version"],
                cameras=tuple(camera["name"] for camera in description["cameras"]),
                history=description.get("history", 1),
                takes_command=description.get("tokenizer", True) is not None,
                state_low=_column(state, "low"),
                state_high=_column(state, "high"),
                names=tuple(action["vocabulary"] if discrete else (d["name"] for d in action["dimensions"])),
                bounds=None
                if discrete
                else (_column(action["dimensions"], "low"), _column(action["dimensions"], "high")),
                horizon=action["horizon"],
                control_hz=action["control_hz"],
            )
        except (KeyError, TypeError) as error:
            raise ContractError(
                f"the policy's description lacks what answers are checked by: {error}"
            ) from error

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The request's fields for pictures: one a camera and observation step, oldest first."""
        cameras = ("image",) if len(self.cameras) == 1 else tuple(f"image.{name}" for name in self.cameras)
        if self.history == 1:
            return cameras
        return tuple(f"{camera}.{step}" for camera in cameras for step in range(self.history))

    @property
    def range(self) -> NDArray[np.float64]:
        """How far apart the bounds of each number of an action are, float64 [A]."""
        return np.ones(len(self.names)) if self.bounds is None else self.bounds[1] - self.bounds[0]

    def state_values(self, draw: Callable[[], float]) -> dict[str, Any]:
        """Return a state inside the bounds as a request's field, or nothing for a policy without state.

        Args:
            draw: gives numbers from 0 to 1
        """
        if not self.state_low.size:
            return {}
        shares = np.array([[draw() for _ in self.state_low] for _ in range(self.history)])
        steps = (self.state_low + shares * (self.state_high - self.state_low)).tolist()
        return {"state": steps if self.history > 1 else steps[0]}

    def check(self, body: bytes) -> ActionChunk:
        """Read the body of an answer with status 200.

        Raises:
            WrongAnswer: it is no answer of the right form, or its policy, names, shape or bounds are not
                those of the contract.
        """
        chunk = read(body)
        got = (chunk.policy, chunk.version, chunk.control_hz)
        if got != (self.policy, self.version, self.control_hz):
            expected = f"{self.policy} {self.version} at {self.control_hz:g} Hz"
            raise WrongAnswer("policy", f"{got[0]} {got[1]} at {got[2]:g} Hz answered, expected {expected}")
        if chunk.action_names != self.names:
            got, expected = ", ".join(chunk.action_names), ", ".join(self.names)
            raise WrongAnswer("names", f"action_names are {got}, expected {expected}")
        self._check_actions(chunk)
        return chunk

    def _check_actions(self, chunk: ActionChunk) -> None:
        table = table_of(chunk)
        if table.shape != (self.horizon, len(self.names)):
            expected = [self.horizon, len(self.names)]
            raise WrongAnswer("shape", f"actions have shape {list(table.shape)}, expected {expected}")
        if (self.bounds is None) != bool(chunk.symbols):
            raise WrongAnswer("form", "symbols of a policy of numbers, or numbers of a policy of symbols")
        if self.bounds is None:
            if (abs(table.sum(axis=1) - 1) > SUM_TOLERANCE).any():
                raise WrongAnswer("bounds", "the sum of probabilities is not 1")
            return
        low, high = self.bounds
        slack = TOLERANCE * (high - low)
        outside = (table < low - slack) | (table > high + slack)
        if outside.any():
            step, column = np.argwhere(outside)[0]
            value = f"{self.names[column]} is {table[step, column]:g} at step {step}"
            raise WrongAnswer("bounds", f"{value}, outside {low[column]:g} to {high[column]:g}")


def table_of(chunk: ActionChunk) -> NDArray[np.float64]:
    """Return float64 [T, A]: the actions in physical units, or of symbols the probabilities of each name."""
    rows = [symbol.probabilities for symbol in chunk.symbols] if chunk.symbols else chunk.actions
    return np.array(rows, np.float64)


def fetch(management_url: str, model: str) -> dict[str, Any]:
    """Ask the management API for the served policy's description.

    Raises:
        ContractError: no answer, or the model does not describe itself.
    """
    try:
        answer = requests.get(f"{management_url}/models/{model}", params={"customized": "true"}, timeout=10)
        answer.raise_for_status()
        description = answer.json()[0]["customizedMetadata"]
    except (requests.RequestException, ValueError, KeyError, IndexError) as error:
        raise ContractError(
            f"no description of model {model!r} at {management_url} ({error}); is the server running? "
            "From another host, name its archive instead: --policy vla.mar"
        ) from error
    return json.loads(description) if isinstance(description, str) else description


def description_in(path: Path) -> dict[str, Any]:
    """Read the description from an archive, its example as a JSON request beside it, or from a `policy.json`.

    Raises:
        ContractError: the file is missing or holds none.
    """
    try:
        if not zipfile.is_zipfile(path):
            return json.loads(path.read_bytes())
        archive = Archive.open(path)
        if archive.policy is None or archive.example is None:
            raise ArchiveError("it has no policy.json")
    except (OSError, ArchiveError, ValueError) as error:
        raise ContractError(f"{path} is neither an archive of a policy nor a policy.json: {error}") from error
    request = {field: b64encode(data).decode() for field, (_, data) in archive.example.images.items()}
    return archive.policy | {"example_request": request | archive.example.values}


def _column(dimensions: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([dimension[name] for dimension in dimensions], np.float64)

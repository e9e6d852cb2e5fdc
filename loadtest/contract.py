"""What a right answer looks like: read from the served policy's own description."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import numpy as np
import requests
from numpy.typing import NDArray

from loadtest.actions import ActionCheck, WrongAnswer, of


class ContractError(RuntimeError):
    """The policy's description can't be read, so no answer could be checked."""


class Safety(msgspec.Struct, frozen=True):
    """What the server's limits did to a chunk."""

    status: Literal["ok", "clamped", "held"]
    violations: list[str]


class Answer(msgspec.Struct, frozen=True):
    """The body of a successful `POST /predictions/<model>`."""

    # As the policy's action space says; see `loadtest/actions.py`.
    actions: list[Any]
    action_names: list[str]
    control_hz: float
    confidence: float | None
    safety: Safety
    # Stages of the batch [ms], and `batch_size` [requests].
    timing_ms: dict[str, float]
    policy: str
    version: str
    request_id: str


@dataclass(frozen=True, eq=False)
class Contract:
    """What the served policy takes and gives."""

    policy: str
    version: str
    cameras: tuple[str, ...]
    # float64 [S], physical units; S is 0 for a policy without state.
    state_low: NDArray[np.float64]
    state_high: NDArray[np.float64]
    actions: ActionCheck
    # Rate at which the robot executes a chunk [Hz].
    control_hz: float

    @classmethod
    def of(cls, description: dict[str, Any]) -> Self:
        """Read a policy's description: the JSON of its `policy.json`.

        Raises:
            ContractError: something that a check needs is missing.
        """
        try:
            state = (description["state"] or {"dimensions": []})["dimensions"]
            action = description["action"]
            return cls(
                policy=description["name"],
                version=description["version"],
                cameras=tuple(camera["name"] for camera in description["cameras"]),
                state_low=np.array([dimension["low"] for dimension in state]),
                state_high=np.array([dimension["high"] for dimension in state]),
                actions=of(action),
                control_hz=action["control_hz"],
            )
        except (KeyError, TypeError) as error:
            raise ContractError(
                f"the policy's description lacks what answers are checked by: {error}"
            ) from error

    @property
    def image_fields(self) -> tuple[str, ...]:
        """The form's fields for pictures."""
        return ("image",) if len(self.cameras) == 1 else tuple(f"image.{name}" for name in self.cameras)

    def check(self, body: bytes) -> Answer:
        """Read the body of an answer with status 200.

        Raises:
            WrongAnswer: it is no JSON of the right form, or its policy, names, shape, finiteness or bounds
                are not those of the contract.
        """
        try:
            answer = msgspec.json.decode(body, type=Answer)
        except msgspec.DecodeError as error:
            raise WrongAnswer("form", str(error)) from error
        self._check_origin(answer)
        self.actions.check(answer.actions)
        return answer

    def _check_origin(self, answer: Answer) -> None:
        got = (answer.policy, answer.version, answer.control_hz)
        if got != (self.policy, self.version, self.control_hz):
            expected = f"{self.policy} {self.version} at {self.control_hz:g} Hz"
            raise WrongAnswer("policy", f"{got[0]} {got[1]} at {got[2]:g} Hz answered, expected {expected}")
        if tuple(answer.action_names) != self.actions.names:
            got, expected = ", ".join(answer.action_names), ", ".join(self.actions.names)
            raise WrongAnswer("names", f"action_names are {got}, expected {expected}")


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


def read(path: Path) -> dict[str, Any]:
    """Read the description from an archive, or from a `policy.json`.

    Raises:
        ContractError: the file is missing or holds none.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("policy.json"))
        return json.loads(path.read_bytes())
    except (OSError, KeyError, ValueError) as error:
        raise ContractError(f"{path} is neither an archive of a policy nor a policy.json: {error}") from error

"""Requests whose right answer is known: the archived example, and others that were asked before the load.

A worker that answers all requests alike, mixes up the rows of a batch, or repeats an earlier batch gives
answers of the right form. It is found out by asking again, under load, what was asked alone before.
"""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import requests
from numpy.typing import NDArray

from loadtest import corpus
from loadtest.access import Access
from loadtest.answers import Contract, WrongAnswer, read_error, table_of
from loadtest.body import FORM, form
from vla_client import ActionChunk

# Requests that are asked alone, and the size of their pictures [pixels].
COUNT = 8
SIZE = (224, 224)
TIMEOUT_S = 60.0
# How far an answer may be from the known one, in the mean over its numbers, as a share of the spread between
# the answers of different requests: rounding, which differs between batch sizes.
TOLERANCE = {"float32": 0.1, "bfloat16": 0.3, "int8": 0.3}
# Share of a dimension's range below which a spread is none.
NO_SPREAD = 1e-6
# The least that a difference is held against, as a share of the range.
LEAST_SPREAD = 1e-3


class NotAsked(RuntimeError):
    """The server can't be asked at all; nothing is known about its answers."""


class Request(msgspec.Struct, frozen=True):
    """What is asked, and its right answer."""

    # By field; JPEG files but for the archived example.
    images: dict[str, bytes]
    values: dict[str, Any]
    # [T][A] in physical units, or probabilities [T][V] of a discrete policy.
    actions: list[list[float]]


class Known(msgspec.Struct, frozen=True):
    """Requests whose right answer is known."""

    requests: list[Request]
    # How much the answers of different requests differ [A]: the standard deviation, never 0.
    spread: list[float]
    tolerance: float
    # What was wrong already before the load.
    findings: list[str]

    def check(self, chunk: ActionChunk, request: Request) -> None:
        """Hold an answer against the known one.

        Raises:
            WrongAnswer: of kind actions: it is another one.
        """
        difference = self.difference(table_of(chunk), np.array(request.actions))
        if difference > self.tolerance:
            raise WrongAnswer(
                "actions",
                f"a known request is answered otherwise: off by {difference:.2g} times the spread between "
                f"answers, at most {self.tolerance:g} is rounding",
            )

    def difference(self, got: NDArray[np.float64], right: NDArray[np.float64]) -> float:
        """Return the mean difference of two answers [T, A], in spreads."""
        return float((np.abs(got - right) / np.array(self.spread)).mean())

    def write(self, path: Path) -> Path:
        """Write it for the load generator's processes."""
        path.write_bytes(msgspec.msgpack.encode(self))
        return path

    @classmethod
    def read(cls, path: Path) -> "Known":
        """Read what `write` wrote."""
        return msgspec.msgpack.decode(path.read_bytes(), type=cls)


def ask(predictions_url: str, access: Access, description: Mapping[str, Any], seed: int) -> Known:
    """Ask the server without load: the archived example, and requests that are all different.

    Args:
        predictions_url: where requests are posted
        access: what lets them in
        description: the policy's own, with its `example_request` where it has one
        seed: of pictures, commands and states

    Raises:
        NotAsked: there is no answer, or the server lets nobody in.
    """
    contract = Contract.of(dict(description))
    findings, found = list[str](), list[Request]()
    example = _example(contract, description)
    asked = [*([example] if example else []), *_different(contract, seed)]
    for request in asked:
        try:
            chunk = _answer(predictions_url, access, contract, request)
        except WrongAnswer as error:
            findings.append(f"{error.kind}: {error}")
            continue
        if chunk.safety.status != "held":  # then it is no answer to this request
            found.append(msgspec.structs.replace(request, actions=table_of(chunk).tolist()))
    scale = contract.range
    spread = np.std([request.actions for request in found], axis=0).mean(axis=0) if found else scale
    if len(found) > 1 and (spread < NO_SPREAD * scale).all():
        findings.append(f"{len(found)} different requests are answered by the same actions")
    known = Known(
        found,
        np.maximum(spread, LEAST_SPREAD * scale).tolist(),
        TOLERANCE[description.get("artifact", {}).get("precision", "float32")],
        findings,
    )
    if example and found and found[0].images == example.images:
        off = known.difference(np.array(found[0].actions), np.array(example.actions))
        if off > known.tolerance:
            known.findings.append(f"the archived example is answered otherwise: off by {off:.2g} spreads")
    return known


def _different(contract: Contract, seed: int) -> Iterator[Request]:
    """Yield requests of different pictures, commands and states."""
    fields, random = contract.image_fields, np.random.default_rng(seed)
    pictures = iter(corpus.pictures(COUNT * len(fields), (SIZE,), seed))
    for index in range(COUNT):
        values: dict[str, Any] = contract.state_values(random.random)
        if contract.takes_command:
            values["command"] = corpus.commands()[index % len(corpus.commands())]
        yield Request({field: next(pictures) for field in fields}, values, [])


def _example(contract: Contract, description: Mapping[str, Any]) -> Request | None:
    """Return the archived example; None where the description does not carry its pictures."""
    given: dict[str, Any] | None = description.get("example_request")
    if given is None:
        return None
    whole = f"image.{contract.cameras[0]}"
    by_field = {
        name.replace(whole, "image", 1) if len(contract.cameras) == 1 else name: given[name] for name in given
    }
    images = {field: base64.b64decode(by_field.pop(field)) for field in contract.image_fields}
    return Request(images, by_field, description["example"]["actions"])


def _answer(url: str, access: Access, contract: Contract, request: Request) -> ActionChunk:
    headers = {**access.headers, "Content-Type": FORM, "Accept": "application/json"}
    body = form(request.images, request.values)
    try:
        answer = requests.post(url, body, headers=headers, timeout=TIMEOUT_S, **access.for_requests)
    except (requests.RequestException, OSError) as error:
        raise NotAsked(f"no answer from {url} ({error})") from error
    if answer.status_code == 200:
        return contract.check(answer.content)
    code, message = read_error(answer.content)
    said = f"{answer.status_code} {code}: {message}"
    if answer.status_code in (401, 403, 404) or code in ("no_certificate", "bad_certificate", "tls_required"):
        raise NotAsked(f"{url} lets nobody in: {said}")
    raise WrongAnswer("refused", said)

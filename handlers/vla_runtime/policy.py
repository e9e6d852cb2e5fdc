"""Policy: requests in, action chunks out. `Policy.infer` is the whole request path."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch

from vla_runtime.actions import ActionChunk, to_chunk
from vla_runtime.apart import Apart
from vla_runtime.artifact import Artifact, Outputs
from vla_runtime.budget import too_much
from vla_runtime.errors import DeadlineExpired, Overloaded, PolicyFailed, RequestError, SpecError
from vla_runtime.example import check_recorded, example_row
from vla_runtime.images import Limits
from vla_runtime.inputs import Preprocessor
from vla_runtime.observation import Observation, Row, decode
from vla_runtime.preprocessing import CommandTokenizer
from vla_runtime.spec import PolicySpec
from vla_runtime.staging import Inputs
from vla_runtime.turns import ALONE

logger = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")
Pair = tuple[int, Inputs]

STAGES: tuple[str, ...] = ("preprocess", "inference", "postprocess")


@dataclass(frozen=True)
class Answer:
    """An action chunk and how its batch was computed."""

    chunk: ActionChunk
    # Wall time of the batch's stages [ms]: preprocess, inference, postprocess.
    timing_ms: dict[str, float]
    # Requests that were computed together.
    batch_size: int
    # What it was computed from.
    inputs: Inputs | None = None


@dataclass(frozen=True)
class Computed:
    """What the policy said to one observation."""

    outputs: Outputs
    inputs: Inputs


class Policy:
    """An exported policy, ready to answer.

    The request path, each step alone for each request but for the batch itself:
        decode -> Observation            `_open`: headers read, costs known
        set apart who costs much         `_apart`: decoded beside the batches
        drop who costs too much          `_afford`: what decoding one batch may take
        preprocess -> Inputs             `_preprocess`, side by side in threads
        drop the expired                 `_fresh`
        act                              `_compute`: batches of at most the largest bucket
        decode, limit -> ActionChunk     `_to_chunk`
    """

    def __init__(
        self,
        spec: PolicySpec,
        tokenizer: CommandTokenizer | None,
        artifact: Artifact,
        threads: int,
        limits: Limits | None = None,
    ) -> None:
        """Compose a policy of its parts; `threads` decode pictures, within `limits`, side by side."""
        self.spec = spec
        self._limits = limits or Limits()
        self._preprocess = Preprocessor(spec, tokenizer)
        self._artifact = artifact
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._beside = Apart()
        # What decoding a batch may cost, and each of its requests in any case [nominal ms].
        pictures = len(spec.cameras) * spec.history
        self._capacity_ms = self._limits.batch_decode_ms * threads * pictures
        self._share_ms = self._capacity_ms / spec.artifact.buckets[-1]

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "cpu",
        threads: int = 2,
        limits: Limits | None = None,
        turn: AbstractContextManager[None] = ALONE,
        *,
        replay: bool = True,
    ) -> Self:
        """Load the policy of an unpacked archive; batches are computed inside `turn`.

        Its example is replayed, unless `replay` says that it has no recorded answer yet, as in export.

        Raises:
            SpecError: a part is missing, contradicts another, or answers its example differently.
        """
        spec = PolicySpec.load(folder)
        tokenizer = CommandTokenizer(folder, spec.tokenizer) if spec.tokenizer else None
        policy = cls(spec, tokenizer, Artifact.load(folder, spec, device, turn), threads, limits)
        if replay:
            policy.check_example(folder)
        return policy

    @property
    def device(self) -> torch.device:
        """Where the policy is computed."""
        return self._artifact.device

    @property
    def graphs(self) -> bool:
        """Whether batches are replayed as CUDA graphs."""
        return self._artifact.graphs

    def compute(self, batch: Sequence[Inputs]) -> list[Outputs]:
        """Run prepared requests, at most as many as the largest bucket, as one batch."""
        return self._artifact(batch)

    @property
    def command_uses(self) -> tuple[int, int]:
        """How many commands so far were found in the cache, and how many had to be encoded."""
        encoded = self._artifact.commands.encoded
        return self._artifact.computed - encoded, encoded

    def infer(
        self,
        rows: Sequence[Row | RequestError | None],
        arrived_s: Sequence[float] | None = None,
        tickets: Sequence[int] | None = None,
        *,
        attention: bool = False,
    ) -> list[Answer | RequestError]:
        """Answer a batch of requests; each succeeds or fails alone, in the order they came.

        Args:
            rows: a mapping of the wire's fields a request, or the error that it has already failed with, or
                None: it was sent before, with its ticket
            arrived_s: when each request came [s since the epoch], now by default
            tickets: by which each is asked for again where it gets `Later`; 0, as by default: it never does
            attention: whether the answers carry attention maps, where the policy gives them
        """
        laps = [time.perf_counter()]
        inputs = self._prepare_all(rows, arrived_s or [time.time()] * len(rows), tickets or [0] * len(rows))
        laps.append(time.perf_counter())
        outputs = self._compute([_isolated(_fresh, item) for item in inputs], attention=attention)
        laps.append(time.perf_counter())
        chunks = [_isolated(self._to_chunk, item) for item in outputs]
        laps.append(time.perf_counter())
        timing_ms = dict(zip(STAGES, (np.diff(laps) * 1000).tolist(), strict=True))
        size = sum(isinstance(item, Computed) for item in outputs)
        return [
            chunk if isinstance(chunk, RequestError) else Answer(chunk, timing_ms, size, _inputs_of(computed))
            for chunk, computed in zip(chunks, outputs, strict=True)
        ]

    def example_row(self, folder: Path) -> Row:
        """Return the archived example as the request that a client would send."""
        return example_row(self.spec, folder)

    def check_example(self, folder: Path) -> None:
        """Replay the archived example request.

        Raises:
            SpecError: the answer differs from the recorded one.
        """
        answer = self.infer([self.example_row(folder)])[0]
        if isinstance(answer, RequestError):
            raise SpecError(f"the archived example is refused: {answer.code}: {answer.message}") from answer
        check_recorded(answer.chunk, self.spec)

    def prepare(self, row: Row, arrived_s: float = 0.0) -> Inputs:
        """Turn one request into tensors.

        Raises:
            RequestError: the request can't be served.
        """
        return self._preprocess(decode(row, self.spec, arrived_s, self._limits))

    def warm_up(self) -> None:
        """Compute every bucket a few times, so that the first request is as fast as the next.

        Raises:
            SpecError: a captured graph answers otherwise than the policy itself.
        """
        self._artifact.warm_up(self._preprocess.blank(0), self._preprocess.blank(255))

    def _prepare_all(
        self, rows: Sequence[Row | RequestError | None], arrived_s: Sequence[float], tickets: Sequence[int]
    ) -> list[Inputs | RequestError]:
        """Decode and preprocess every request, side by side where there are several."""
        pairs = zip(rows, arrived_s, strict=True)
        opened = [_isolated(partial(self._open, arrived_s=at), row) for row, at in pairs]
        set_apart = [
            _isolated(partial(self._apart, ticket=ticket), item)
            for item, ticket in zip(opened, tickets, strict=True)
        ]
        afforded = self._afford(set_apart)
        if len(rows) == 1:
            return [_isolated(self._inputs, afforded[0])]
        return list(self._pool.map(partial(_isolated, self._inputs), afforded))

    def _open(self, row: Row | None, arrived_s: float) -> Observation | None:
        return None if row is None else decode(row, self.spec, arrived_s, self._limits)

    def _apart(self, observation: Observation | None, ticket: int) -> Observation | Inputs | RequestError:
        """Return what costs much once it was decoded beside the batches, and anything else as it is."""
        if observation is None:
            return self._beside.fetched(ticket)
        if not ticket or observation.cost_ms <= self._limits.apart_decode_ms:
            return observation
        prepare = partial(_isolated, self._preprocess, observation)
        return self._beside.inputs(ticket, observation.cost_ms, prepare)

    def _inputs(self, item: Observation | Inputs) -> Inputs:
        return item if isinstance(item, Inputs) else self._preprocess(item)

    def _afford(
        self, opened: Sequence[Observation | Inputs | RequestError]
    ) -> list[Observation | Inputs | RequestError]:
        """Refuse those whose decoding would delay the others of the batch."""
        costs = {place: item.cost_ms for place, item in enumerate(opened) if isinstance(item, Observation)}
        refused = too_much(costs, self._capacity_ms, self._share_ms)
        error = "decoding its pictures would delay others: send smaller ones, or baseline JPEGs, or try again"
        return [Overloaded(None, error) if place in refused else item for place, item in enumerate(opened)]

    def _compute(
        self, inputs: Sequence[Inputs | RequestError], *, attention: bool
    ) -> list[Computed | RequestError]:
        """Run the requests that have not failed, in batches of at most the largest bucket."""
        outputs: list[Computed | RequestError] = [
            item if isinstance(item, RequestError) else PolicyFailed(None, "not computed") for item in inputs
        ]
        live = [(index, item) for index, item in enumerate(inputs) if isinstance(item, Inputs)]
        # Commands of one length at a time; most policies pad all to one.
        live.sort(key=lambda pair: len(pair[1].ids))
        for _, group in groupby(live, key=lambda pair: len(pair[1].ids)):
            for batch in _batches(list(group), self.spec.artifact.buckets[-1]):
                indices, items = zip(*batch, strict=True)
                for index, output in zip(indices, self._run(items, attention=attention), strict=True):
                    outputs[index] = output
        return outputs

    def _run(self, batch: Sequence[Inputs], *, attention: bool) -> list[Computed | RequestError]:
        """Run one batch; when it fails as a whole, run its requests one by one."""
        try:
            outputs = self._artifact(batch, attention=attention)
            return [Computed(*pair) for pair in zip(outputs, batch, strict=True)]
        except torch.AcceleratorError:  # the device is lost to this process
            raise
        except Exception:
            logger.exception("a batch of %d failed", len(batch))
        if len(batch) == 1:
            return [PolicyFailed(None, "the policy failed on this request")]
        return [self._run([item], attention=attention)[0] for item in batch]

    def _to_chunk(self, computed: Computed) -> ActionChunk:
        if time.time() > computed.inputs.deadline_s:
            raise DeadlineExpired("deadline_ms", "expired while the request was computed")
        inputs = computed.inputs
        return to_chunk(computed.outputs, inputs.state, inputs.previous, self.spec, inputs.prefix)


def _batches(items: list[Pair], largest: int) -> Iterator[list[Pair]]:
    return (items[start : start + largest] for start in range(0, len(items), largest))


def _isolated(step: Callable[[In], Out], item: In | RequestError) -> Out | RequestError:
    """Run one step of one request: its failure is its own, and a request that has failed stays failed."""
    if isinstance(item, RequestError):
        return item
    try:
        return step(item)
    except RequestError as error:
        return error
    except Exception:
        logger.exception("a request failed")
        return PolicyFailed(None, "the server failed on this request")


def _inputs_of(computed: Computed | RequestError) -> Inputs | None:
    return computed.inputs if isinstance(computed, Computed) else None


def _fresh(inputs: Inputs) -> Inputs:
    if time.time() > inputs.deadline_s:
        raise DeadlineExpired("deadline_ms", "expired before the request could be computed")
    return inputs

"""Policy: requests in, action chunks out. `Policy.infer` is the whole request path."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch

from vla_runtime.actions import ActionChunk, example_tolerance, normalise, to_chunk
from vla_runtime.artifact import Artifact, Inputs, Outputs
from vla_runtime.errors import DeadlineExpired, PolicyFailed, RequestError, SpecError
from vla_runtime.observation import Row, decode
from vla_runtime.preprocessing import CommandTokenizer, noise, picture
from vla_runtime.spec import PolicySpec

logger = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")

STAGES: tuple[str, ...] = ("preprocess", "inference", "postprocess")


@dataclass(frozen=True)
class Answer:
    """An action chunk and how its batch was computed."""

    chunk: ActionChunk
    # Wall time of the batch's stages [ms]: preprocess, inference, postprocess.
    timing_ms: dict[str, float]
    # Requests that were computed together.
    batch_size: int


class Policy:
    """An exported policy, ready to answer."""

    def __init__(
        self, spec: PolicySpec, tokenizer: CommandTokenizer, artifact: Artifact, threads: int
    ) -> None:
        """Compose a policy of its parts; `threads` decode pictures side by side."""
        self.spec = spec
        self._tokenizer = tokenizer
        self._artifact = artifact
        self._pool = ThreadPoolExecutor(threads, "decode")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", threads: int = 2) -> Self:
        """Load the policy of an unpacked archive and replay its example.

        Raises:
            SpecError: a part is missing, contradicts another, or answers its example differently.
        """
        spec = PolicySpec.load(folder)
        policy = cls(spec, CommandTokenizer(folder, spec.tokenizer), Artifact(folder, spec, device), threads)
        policy.check_example(folder)
        return policy

    @property
    def device(self) -> torch.device:
        """Where the policy is computed."""
        return self._artifact.device

    @property
    def command_uses(self) -> tuple[int, int]:
        """How many commands so far were found in the cache, and how many had to be encoded."""
        return self._artifact.computed - self._artifact.encoded, self._artifact.encoded

    def infer(
        self, rows: Sequence[Row | RequestError], arrived_s: Sequence[float] | None = None
    ) -> list[Answer | RequestError]:
        """Answer a batch of requests; each succeeds or fails alone, in the order they came.

        Args:
            rows: a mapping of the wire's fields a request, or the error that it has already failed with
            arrived_s: when each request came [s since the epoch], now by default
        """
        laps = [time.perf_counter()]
        inputs = self._prepare_all(rows, arrived_s or [time.time()] * len(rows))
        laps.append(time.perf_counter())
        outputs = self._compute([_isolated(_fresh, item) for item in inputs])
        laps.append(time.perf_counter())
        chunks = [_isolated(self._to_chunk, item) for item in outputs]
        laps.append(time.perf_counter())
        timing_ms = dict(zip(STAGES, (np.diff(laps) * 1000).tolist(), strict=True))
        size = sum(isinstance(item, Outputs) for item in outputs)
        return [_isolated(lambda chunk: Answer(chunk, timing_ms, size), chunk) for chunk in chunks]

    def example_row(self, folder: Path) -> Row:
        """Return the archived example as the request that a client would send."""
        example = self.spec.example
        row: dict[str, object] = {"command": example.command, "seed": example.seed}
        row |= {f"image.{camera}": (folder / file).read_bytes() for camera, file in example.images.items()}
        return row | ({"state": example.state} if self.spec.state else {})

    def check_example(self, folder: Path) -> None:
        """Replay the archived example request.

        Raises:
            SpecError: the answer differs from the recorded one.
        """
        answer = self.infer([self.example_row(folder)])[0]
        if isinstance(answer, RequestError):
            raise SpecError(f"the archived example is refused: {answer.code}: {answer.message}") from answer
        recorded = np.asarray(self.spec.example.actions, np.float32)
        shape, tolerance = answer.chunk.recordable.shape, example_tolerance(self.spec.action)
        if recorded.shape != shape:
            raise SpecError(f"the archived example has shape {recorded.shape}, got {shape}")
        difference = answer.chunk.difference(recorded)
        if not difference <= tolerance:
            raise SpecError(
                f"the archived example is answered differently: by {difference:.2g} in normalised units, "
                f"at most {tolerance:.4g} is allowed"
            )

    def warm_up(self) -> None:
        """Compute every bucket a few times, so that the first request is as fast as the next."""
        size = self.spec.cameras[0].size
        pictures = np.zeros((len(self.spec.cameras), 3, size, size), np.uint8)
        ids, mask = self._tokenizer("warm up")
        state = np.zeros(self.spec.state_size, np.float32)
        self._artifact.warm_up(Inputs(pictures, ids, mask, state, noise(0, self.spec), np.inf))

    def _prepare_all(
        self, rows: Sequence[Row | RequestError], arrived_s: Sequence[float]
    ) -> list[Inputs | RequestError]:
        """Decode and preprocess every request, side by side where there are several."""
        mapped = map if len(rows) == 1 else self._pool.map
        return list(
            mapped(lambda row, arrived: _isolated(lambda r: self._prepare(r, arrived), row), rows, arrived_s)
        )

    def _prepare(self, row: Row, arrived_s: float) -> Inputs:
        spec = self.spec
        observation = decode(row, spec, arrived_s)
        ids, mask = self._tokenizer(observation.command)
        parts = zip(observation.images, spec.cameras, observation.fields, strict=True)
        return Inputs(
            pictures=np.stack([picture(*part) for part in parts]),
            ids=ids,
            mask=mask,
            state=normalise(observation.state, spec.state) if spec.state else observation.state,
            noise=noise(observation.seed, spec),
            deadline_s=observation.deadline_s,
        )

    def _compute(self, inputs: Sequence[Inputs | RequestError]) -> list[Outputs | RequestError]:
        """Run the requests that have not failed, in batches of at most the largest bucket."""
        outputs: list[Outputs | RequestError] = [
            item if isinstance(item, RequestError) else PolicyFailed(None, "not computed") for item in inputs
        ]
        live = [(index, item) for index, item in enumerate(inputs) if isinstance(item, Inputs)]
        largest = self.spec.artifact.buckets[-1]
        for start in range(0, len(live), largest):
            indices, batch = zip(*live[start : start + largest], strict=True)
            for index, output in zip(indices, self._run(batch), strict=True):
                outputs[index] = output
        return outputs

    def _run(self, batch: Sequence[Inputs]) -> list[Outputs | RequestError]:
        """Run one batch; when it fails as a whole, run its requests one by one."""
        try:
            return list(self._artifact(batch))
        except torch.AcceleratorError:  # the device is lost to this process
            raise
        except Exception:
            logger.exception("a batch of %d failed", len(batch))
        if len(batch) == 1:
            return [PolicyFailed(None, "the policy failed on this request")]
        return [self._run([item])[0] for item in batch]

    def _to_chunk(self, output: Outputs) -> ActionChunk:
        return to_chunk(output, self.spec)


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


def _fresh(inputs: Inputs) -> Inputs:
    if time.time() > inputs.deadline_s:
        raise DeadlineExpired("deadline_ms", "expired before the request could be computed")
    return inputs

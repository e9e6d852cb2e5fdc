"""The policies beside the served one: the same archive in-process, the scripted expert, random actions.

All answer `infer(observation)` as `client.RemotePolicy` does.
"""

import tempfile
import threading
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from archive.read import unpack
from vla.tabletop.expert import expert_chunk
from vla.tabletop.simulator import ACTION, ACTION_HIGH, ACTION_LOW, CONTROL_HZ, Tabletop
from vla_client import ActionChunk, Observation, SafetyReport


class ArchivedPolicy:
    """An archive's policy without a server: what the worker runs, in this process. Thread-safe."""

    def __init__(self, archive: Path, device: str = "cpu") -> None:
        """Unpack `archive` (.mar) into a temporary folder and load it on `device`, a torch device.

        Raises:
            FileNotFoundError: there is no such archive.
            SpecError: the archive can't be served; says why.
        """
        from vla_runtime.policy import Policy  # noqa: PLC0415  loads torch, which nothing else here needs

        self._folder = tempfile.TemporaryDirectory(prefix="vla_evaluation_")
        try:
            self._policy = Policy.load(unpack(archive, Path(self._folder.name)), device=device)
        except BaseException:
            self.close()
            raise
        self._turn = threading.Lock()

    def infer(self, observation: Observation) -> ActionChunk:
        """Answer one observation, as a batch of one.

        Raises:
            RequestError: what the server would answer with its 4xx or 503.
        """
        row: dict[str, object] = {**observation.encoded("png"), "command": observation.command}
        if observation.state is not None:
            row["state"] = np.asarray(observation.state, np.float64).tolist()
        if observation.seed is not None:
            row["seed"] = observation.seed
        if observation.previous is not None:
            row["previous"] = np.asarray(observation.previous, np.float64).tolist()
        if observation.delay is not None:
            row["delay"] = observation.delay
        with self._turn:
            [answer] = self._policy.infer([row])
        if isinstance(answer, Exception):
            raise answer
        chunk = answer.chunk
        return ActionChunk(
            actions=chunk.actions,
            action_names=chunk.space.names,
            control_hz=chunk.space.control_hz,
            confidence=chunk.confidence,
            safety=SafetyReport(chunk.safety.status, chunk.safety.violations),
            timing_ms={**answer.timing_ms, "batch_size": answer.batch_size},
            policy=self._policy.spec.name,
            version=self._policy.spec.version,
            request_id="in-process",
            extras=chunk.extras,
            delay=chunk.delay,
            max_delay=self._policy.spec.max_delay,
        )

    def close(self) -> None:
        """Delete the temporary folder."""
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ExpertPolicy:
    """The scripted expert of one simulator: it reads the simulator, not the observation."""

    def __init__(self, env: Tabletop, horizon: int = 1) -> None:
        """Answer with the `horizon` actions that the expert would really take [control steps]."""
        self._env = env
        self._horizon = horizon

    def infer(self, observation: Observation) -> ActionChunk:
        """Answer for the simulator's present moment and its own goal."""
        del observation
        return _scripted("expert", expert_chunk(self._env, self._env.goal, self._horizon))


class RandomPolicy:
    """Uniformly random actions within the bounds, drawn from the observation's seed."""

    def __init__(self) -> None:
        self._seed: int | None = None
        self._random = np.random.default_rng()

    def infer(self, observation: Observation) -> ActionChunk:
        """Answer with the next draw; an observation of another seed starts another sequence."""
        if observation.seed != self._seed:
            self._seed = observation.seed
            self._random = np.random.default_rng(observation.seed)
        return _scripted("random", self._random.uniform(ACTION_LOW, ACTION_HIGH)[None].astype(np.float32))


def _scripted(name: str, actions: NDArray[np.float32]) -> ActionChunk:
    """Wrap float32 [T, 4] in physical units."""
    names = tuple(dimension.name for dimension in ACTION)
    return ActionChunk(actions, names, CONTROL_HZ, None, SafetyReport("ok"), {}, name, "1", "in-process")

"""One observation as the tensors that the policy takes."""

import numpy as np

from vla_runtime.actions import normalise, prefix_inputs
from vla_runtime.observation import Observation
from vla_runtime.preprocessing import CommandTokenizer, noise, picture, state_bins
from vla_runtime.spec import Camera, PolicySpec
from vla_runtime.staging import Inputs


class Preprocessor:
    """Decodes the pictures, tokenizes the command, normalises the state, draws the noise."""

    def __init__(self, spec: PolicySpec, tokenizer: CommandTokenizer | None) -> None:
        self._spec = spec
        self._tokenizer = tokenizer

    def __call__(self, observation: Observation) -> Inputs:
        """Turn one observation into tensors.

        Raises:
            RequestError: the observation can't be served.
        """
        spec = self._spec
        ids, mask = self._tokens(observation.command, observation.state[-1])
        tensors: dict[str, np.ndarray] = {
            f"image.{c.name}": _pictures(observation, i, c) for i, c in enumerate(spec.cameras)
        }
        state = normalise(observation.state, spec.state) if spec.state else observation.state
        tensors["state"] = state if spec.history > 1 else state[0]
        tensors["noise"] = noise(observation.seed, spec)
        tensors |= prefix_inputs(observation.prefix, observation.state[-1], spec)
        return Inputs(
            tensors,
            ids,
            mask,
            observation.state[-1],
            observation.previous,
            observation.deadline_s,
            observation.prefix,
            observation.command,
        )

    def blank(self, grey: int) -> Inputs:
        """Return an observation of grey pictures, to warm up with."""
        spec, steps = self._spec, () if self._spec.history == 1 else (self._spec.history,)
        tensors: dict[str, np.ndarray] = {
            f"image.{camera.name}": np.full((*steps, 3, camera.height, camera.width), grey, np.uint8)
            for camera in spec.cameras
        }
        width = spec.state.policy_width if spec.state else 0
        tensors["state"] = np.full((*steps, width), grey / 255, np.float32)
        tensors["noise"] = noise(grey, spec)
        tensors |= prefix_inputs(
            np.zeros((0, spec.action.width), np.float32), np.zeros(spec.state_size), spec
        )
        ids, mask = self._tokens("warm up", np.zeros(spec.state_size))
        nothing = np.zeros(spec.state_size, np.float32), np.full(spec.action.width, np.nan, np.float32)
        return Inputs(tensors, ids, mask, *nothing, np.inf)

    def _tokens(self, command: str, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._tokenizer is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return self._tokenizer(command, state_bins(state, self._spec.state, self._spec.tokenizer))


def _pictures(observation: Observation, index: int, camera: Camera) -> np.ndarray:
    """Return one camera's pictures: uint8 [3, H, W], or [n, 3, H, W] with a history."""
    steps = zip(observation.images[index], observation.fields[index], strict=True)
    made = [picture(image, camera, field) for image, field in steps]
    return made[0] if len(made) == 1 else np.stack(made)

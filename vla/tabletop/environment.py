"""The tabletop by Gymnasium's interface, so that any policy can drive it, and ours any other environment.

`gymnasium.make("vla.tabletop.environment:vla/Tabletop-v0")` registers it and makes one. The interface is that
of Towers et al. 2024, "Gymnasium: A Standard Interface for Reinforcement Learning Environments".
"""

import string
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from vla.tabletop.commands import GOALS, Goal, held_out, parse
from vla.tabletop.language import Kind, command
from vla.tabletop.looks import PLAIN, draw_look
from vla.tabletop.simulator import ACTION_HIGH, ACTION_LOW, CONTROL_HZ, EPISODE_STEPS, STATE, Tabletop

NAME = "vla/Tabletop-v0"
# Longest command [letters].
LONGEST = 400


class TabletopEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One commanded episode after another.

    Observations: `front` uint8 [size, size, 3] RGB, `state` float32 [4] as `simulator.STATE`, and `command`.
    Actions: float32 [4] as `simulator.ACTION`, motions in metres a control step and the gripper's command.

    The reward is 1 in the step in which the task is done, else 0. An episode terminates then, and when the
    task happens to another block first; it is truncated after 50 control steps. `info` has `goal`, `success`,
    `outcome` (the block that the task first happened to, or None) and `disturbed` (other blocks that moved).

    Args:
        image_size: width and height of the pictures [pixels], up to 640
        kind: how goals are said: `plain`, `synonym`, `typo`, `negation`, `landmark`, in sentence patterns
            that training never uses; None: in the held-out phrasings
        varied: draw light, colours, camera and distractors anew for each episode
        dwell: how long a task must stay done [control steps]
        render_mode: `rgb_array`, or None

    Raises:
        ValueError: a value is outside its bounds.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}  # noqa: RUF012

    def __init__(
        self,
        image_size: int = 96,
        kind: Kind | None = None,
        *,
        varied: bool = False,
        dwell: int = 1,
        render_mode: str | None = None,
    ) -> None:
        for name, value, highest in (("image_size", image_size, 640), ("dwell", dwell, EPISODE_STEPS)):
            if not 1 <= value <= highest:
                raise ValueError(f"{name} must be between 1 and {highest}, got {value}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be rgb_array or None, got {render_mode!r}")
        self.render_mode = render_mode
        self._state = spaces.Box(*np.array([(each.low, each.high) for each in STATE], np.float32).T)
        self.observation_space = spaces.Dict(
            {
                "front": spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
                "state": self._state,
                "command": spaces.Text(LONGEST, min_length=1, charset=string.printable),
            }
        )
        self.action_space = spaces.Box(ACTION_LOW, ACTION_HIGH)
        self.tabletop = Tabletop()
        self._size, self._varied, self._dwell = image_size, varied, dwell
        self._kind: Kind | None = kind
        self._command, self._stayed = "", 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of this and all episodes that follow
            options: `goal`, such as "lift blue", and `scene`, the simulator's own seed; drawn where missing

        Raises:
            ValueError: an option is unknown, or there is no such goal.
        """
        super().reset(seed=seed)
        given = options or {}
        if unknown := sorted(set(given) - {"goal", "scene"}):
            raise ValueError(f"unknown options {', '.join(unknown)}; valid: goal, scene")
        goal = parse(given["goal"]) if "goal" in given else GOALS[self.np_random.integers(len(GOALS))]
        scene = int(given.get("scene", self.np_random.integers(1 << 31)))
        self.tabletop.reset(scene, goal)
        blocks = self.tabletop.blocks()
        self.tabletop.look = draw_look(self.np_random, blocks) if self._varied else PLAIN
        self._command, self._stayed = self._said(goal), 0
        return self._observation(), self._info(done=False)

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move for one control step; actions outside the space are clipped.

        Raises:
            ValueError: the action has a wrong shape or a number that is not finite.
        """
        env = self.tabletop
        env.step(action)
        self._stayed = self._stayed + 1 if env.success and env.happens(env.goal) else 0
        done = self._stayed >= self._dwell
        terminated = done or env.outcome() not in (None, env.goal.colour)
        truncated = not terminated and env.steps >= EPISODE_STEPS
        return self._observation(), float(done), terminated, truncated, self._info(done=done)

    def render(self) -> NDArray[np.uint8] | None:
        """Draw what the camera sees, uint8 [size, size, 3] RGB; None without a render mode."""
        return self.tabletop.render(self._size) if self.render_mode else None

    def close(self) -> None:
        """Free the rendering contexts."""
        self.tabletop.close()

    def _said(self, goal: Goal) -> str:
        if self._kind is None:
            return held_out(goal, int(self.np_random.integers(1 << 16)))
        return command(self.np_random, goal, self._kind, "test")

    def _observation(self) -> dict[str, Any]:
        return {
            "front": self.tabletop.render(self._size),
            "state": self.tabletop.state().clip(self._state.low, self._state.high),
            "command": self._command,
        }

    def _info(self, *, done: bool) -> dict[str, Any]:
        env = self.tabletop
        goal, outcome = " ".join(env.goal), env.outcome()
        return {"goal": goal, "success": done, "outcome": outcome, "disturbed": env.disturbed()}


gymnasium.register(NAME, entry_point="vla.tabletop.environment:TabletopEnv")

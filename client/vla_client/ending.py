"""Tells when a task is done, by what the policy answers.

A single frame may mislead the policy, and the frame after an action is another one. A policy that takes its
task for done stands still, so its next answer is about the same scene: two that agree are worth an end.
"""

from __future__ import annotations

from vla_client.chunk import ActionChunk

# An answer calls the task done where that is at least as likely as not.
THRESHOLD = 0.5
# Answers running that must.
ANSWERS = 2


class Ending:
    """Counts how many answers running call one command's task done."""

    def __init__(self) -> None:
        self._command = ""
        self._running = 0

    @property
    def done(self) -> bool:
        """Whether the last two answers did; never for a policy that answers no `done`."""
        return self._running >= ANSWERS

    def add(self, command: str, chunk: ActionChunk) -> None:
        """Take the answer to `command` into account; another command begins anew."""
        if command != self._command:
            self._command, self._running = command, 0
        self._running = self._running + 1 if (chunk.done or 0) >= THRESHOLD else 0

    def reset(self) -> None:
        """Forget all answers."""
        self._running = 0

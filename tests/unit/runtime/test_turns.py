"""Turns on a device that workers share."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from test_outputs import Talkative, row, talkative
from torch import Tensor

from vla_runtime.artifact import Artifact
from vla_runtime.policy import Policy
from vla_runtime.turns import Turn

HOLDS = """
import sys, time
from pathlib import Path
from vla_runtime.turns import Turn
with Turn(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(60)
"""


def test_one_has_the_device_at_a_time(tmp_path: Path) -> None:
    path, events = tmp_path / "cuda:0.turn", list[str]()

    def other() -> None:
        with Turn(path):
            events.append("other")

    thread = threading.Thread(target=other)
    with Turn(path):
        thread.start()
        thread.join(0.1)  # time to do it wrong
        events.append("one")
    thread.join(10)
    assert events == ["one", "other"]


def test_other_devices_do_not_wait(tmp_path: Path) -> None:
    with Turn(tmp_path / "cuda:0.turn"), Turn(tmp_path / "cuda:1.turn"):
        pass


def test_a_turn_comes_again_and_ends_with_an_error(tmp_path: Path) -> None:
    turn = Turn(tmp_path / "turn")
    for _ in range(2):
        try:
            with turn:
                raise ValueError
        except ValueError:
            pass
    with Turn(tmp_path / "turn"):
        pass


def test_a_killed_worker_gives_its_turn_up(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    with subprocess.Popen([sys.executable, "-c", HOLDS, path], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == "has it\n"
        worker.kill()
        with Turn(path):
            pass


class Noted(Turn):
    """Notes when it begins and ends."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.events: list[str] = []

    def __enter__(self) -> None:
        super().__enter__()
        self.events.append("turn")

    def __exit__(self, *error: Any) -> None:
        self.events.append("over")
        super().__exit__(*error)


class Noting(Talkative):
    """Notes when it computes."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        self._events.append("act")
        return super().act(*inputs)


def test_a_batch_is_computed_in_its_turn(tmp_path: Path) -> None:
    turn = Noted(tmp_path / "turn")
    artifact = Artifact(Noting(turn.events), talkative(), torch.device("cpu"), turn=turn)
    for rows in ([row(51)], [row(51), row(102)]):
        artifact(rows)
    assert turn.events == ["turn", "act", "over"] * 2


def test_a_loaded_policy_has_its_turn(tmp_path: Path, tiny_folder: Path) -> None:
    turn = Noted(tmp_path / "turn")
    Policy.load(tiny_folder, turn=turn)
    assert turn.events == ["turn", "over"]

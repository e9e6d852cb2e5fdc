"""How large batches reach a worker: by a file in shared memory, which nobody leaves there."""

import os
from pathlib import Path

import pytest
from small_torchserve import Running, answer, gate
from test_gate_batches import request

from server import shared_memory
from server.gate import hand_over
from server.gate.hand_over import SMALLEST
from server.gate.queue import Room
from vla_runtime import joined
from vla_runtime.errors import MalformedBody

ROOM = Room(batches=1, largest=4, waiting=8)
LARGE, SMALL = b"x" * SMALLEST, b"small"


def test_a_large_batch_is_a_file_and_a_small_one_is_not(tmp_path: Path) -> None:
    async def check(running: Running) -> None:
        running.torchserve.shared_memory = tmp_path
        for body in (LARGE, SMALL, LARGE):
            assert (await running.ask(request(body)))[::2] == (200, body)
        assert running.torchserve.files == 2
        assert list(tmp_path.iterdir()) == []

    gate(check, ROOM, tmp_path)


def test_a_file_is_its_owners_alone_and_gone_when_the_worker_died(tmp_path: Path) -> None:
    async def check(running: Running) -> None:
        running.torchserve.shared_memory = tmp_path
        opened = await running.open(request(b"wait" + LARGE))
        await running.until(lambda: len(running.torchserve.seen) == 1)
        (file,) = tmp_path.iterdir()
        assert (file.name.isdigit(), file.stat().st_mode & 0o777) == (True, 0o600)
        running.torchserve.go.set()
        assert (await answer(opened))[0] == 200
        assert (await running.ask(request(b"die" + LARGE)))[0] == 500
        assert list(tmp_path.iterdir()) == []

    gate(check, ROOM, tmp_path)


def test_a_worker_that_knows_of_no_files_gets_the_batch_itself(tmp_path: Path) -> None:
    async def check(running: Running) -> None:
        assert (await running.ask(request(LARGE)))[::2] == (200, LARGE)
        running.torchserve.shared_memory = tmp_path  # but it is not tried again
        assert (await running.ask(request(LARGE)))[::2] == (200, LARGE)
        assert (running.torchserve.files, list(tmp_path.iterdir())) == (0, [])

    gate(check, ROOM, tmp_path)


@pytest.mark.parametrize("full", [True, False])
def test_without_room_the_batch_itself_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, full: bool
) -> None:
    folder = tmp_path if full else tmp_path / "missing"
    if full:  # a device that is always full stands for the folder's
        monkeypatch.setattr(hand_over.os, "open", lambda *_: os.dup(device))

    async def check(running: Running) -> None:
        running.torchserve.shared_memory = tmp_path
        assert (await running.ask(request(LARGE)))[::2] == (200, LARGE)
        assert running.torchserve.files == 0

    with Path("/dev/full").open("wb") as opened:
        device = opened.fileno()
        gate(check, ROOM, folder)


def test_a_worker_reads_files_by_their_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (joined.BY_NAME, joined.VARIABLE) == (hand_over.BY_NAME, shared_memory.VARIABLE)
    monkeypatch.delenv(joined.VARIABLE, raising=False)
    assert joined.is_batch(joined.MEDIA_TYPE)
    assert not joined.is_batch(joined.BY_NAME)  # it answers 415
    monkeypatch.setenv(joined.VARIABLE, "")
    assert not joined.is_batch(joined.BY_NAME)
    monkeypatch.setenv(joined.VARIABLE, str(tmp_path / "folder"))
    assert joined.is_batch(joined.BY_NAME)
    assert not joined.is_batch("application/msgpack")

    (tmp_path / "folder").mkdir()
    for place in ("7", "folder/7", "folder/x"):
        (tmp_path / place).write_bytes(b"\x90")
    assert joined.read(b"7", joined.BY_NAME) == []
    assert joined.read(b"\x90", joined.MEDIA_TYPE) == []
    for name in (b"", b"x", b"../7", b"7\n", b"7/", b"\x90"):
        with pytest.raises(MalformedBody, match=r"^the body is not the name of a batch$"):
            joined.read(name, joined.BY_NAME)
    with pytest.raises(MalformedBody, match=r"^the batch is gone$"):
        joined.read(b"8", joined.BY_NAME)


def test_the_folder_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "PLACE", tmp_path)
    folder = shared_memory.make_folder()
    assert folder is not None
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(shared_memory, "PLACE", tmp_path / "missing")
    assert shared_memory.make_folder() is None

"""API keys at the proxy: exact, read again while they change, guesses throttled and counted."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from test_proxy import post, refusal

from bench.faults.processes import Running, proxy

UNAUTHORIZED = (401, "unauthorized")
KEYS = """# One client a line.
Secret-1 robot-1
secret-1 robot-2
~^.*$ robot-3
$key"\\;{} robot-4
sha256:{} robot-5
"""


@pytest.fixture
def keys(folder: Path) -> Path:
    path = folder / "exact_keys"
    path.write_text(KEYS.replace("sha256:{}", "sha256:" + hashlib.sha256(b"unwritten").hexdigest()))
    return path


@pytest.fixture
def front(lasting_replica: Running, folder: Path, keys: Path) -> Iterator[Running]:
    with proxy(folder, lasting_replica.port, AUTH="keys", KEYS_FILE=keys) as running:
        yield running


def ask(front: Running, key: str) -> requests.Response:
    return post(front.predictions_url, headers={"X-API-Key": key})


def counted(front: Running, reason: str) -> int:
    text = requests.get(f"http://127.0.0.1:{front.port + 1}/metrics", timeout=5).text
    (line,) = [
        line for line in text.splitlines() if f'vla_proxy_refused_keys_total{{reason="{reason}"}}' in line
    ]
    return int(line.split()[-1])


def test_keys_are_exact(front: Running) -> None:
    for key in ("Secret-1", "secret-1", "~^.*$", '$key"\\;{}', "unwritten"):
        assert ask(front, key).status_code == 200, key
    for key in ("SECRET-1", "anything", "Secret-1x", hashlib.sha256(b"unwritten").hexdigest()):
        assert refusal(ask(front, key)) == UNAUTHORIZED, key
    named = [part.split('"')[0] for part in front.log.read_text().split('"client":"')[1:]]
    assert named[:5] == [f"robot-{n}" for n in range(1, 6)]
    assert "ecret-1" not in front.log.read_text()
    assert counted(front, "unauthorized") == 4


def test_the_file_is_read_again_while_it_serves(front: Running, keys: Path) -> None:
    assert refusal(ask(front, "new")) == UNAUTHORIZED
    keys.write_text("new robot-9\n")
    wait_for_status(front, "new", 200)
    assert refusal(ask(front, "Secret-1")) == UNAUTHORIZED

    keys.write_text("new robot-9\nnew robot-8\n")  # a mistake changes nothing
    deadline = time.monotonic() + 10
    while "API keys stay as they were" not in front.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ask(front, "new").status_code == 200
    assert "line 2 has a key that is there already" in front.log.read_text()


def wait_for_status(front: Running, key: str, status: int) -> None:
    deadline = time.monotonic() + 10
    while ask(front, key).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.7)


def test_guesses_are_throttled_and_working_robots_are_not(front: Running) -> None:
    assert ask(front, "Secret-1").status_code == 200
    answers = [refusal(ask(front, f"guess-{n}")) for n in range(14)]

    assert answers == [UNAUTHORIZED] * 10 + [(429, "overloaded")] * 4
    assert ask(front, "Secret-1").status_code == 200  # it has worked from here before
    assert ask(front, "secret-1").status_code == 429  # a right guess says no more than a wrong one
    assert (counted(front, "unauthorized"), counted(front, "throttled")) == (10, 5)


@pytest.mark.parametrize("line", ["only-a-key", "a b c", "same x\nsame y"])
def test_a_wrong_file_does_not_start(tmp_path: Path, lasting_replica: Running, line: str) -> None:
    import subprocess  # noqa: PLC0415

    from bench.faults.processes import ROOT  # noqa: PLC0415

    (tmp_path / "keys").write_text(line + "\n")
    settings = {"PATH": "/usr/bin:/bin", "FOLDER": str(tmp_path), "KEYS_FILE": str(tmp_path / "keys")}
    run = subprocess.run(
        [ROOT / "docker/proxy/start"], env=settings, capture_output=True, text=True, timeout=10, check=False
    )

    assert run.returncode == 1
    assert "a line is not a key, a space and a name, or has a key that is there already" in run.stderr

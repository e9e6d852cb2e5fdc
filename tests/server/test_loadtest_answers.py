"""Answers of the right form that are wrong: the load test of a real server finds each out."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from making import serve
from test_loadtest import load_test

from archive.read import MANIFEST
from server.process import TorchServe

# Appended to a file of the archive's own runtime.
ONE_ACTION_SHORT = """

_whole = answer_body


def answer_body(*arguments):
    body = _whole(*arguments)
    body["actions"].pop()
    return body
"""
CONSTANT = """

_whole = answer_body


def answer_body(answer, spec, *arguments):
    return _whole(answer, spec, *arguments) | {"actions": [list(row) for row in spec.example.actions]}
"""
SWAPPED = """

_whole = Policy.infer
Policy.infer = lambda *arguments, **options: _whole(*arguments, **options)[::-1]
"""
STALE = """

_whole, _kept = Policy.infer, {}


def _infer(self, rows, *arguments, **options):
    answers = _whole(self, rows, *arguments, **options)
    return answers if len(rows) == 1 else _kept.setdefault(len(rows), answers)


Policy.infer = _infer
"""


# Model -> what is appended to which file.
BROKEN = {
    "short": ("vla_runtime/wire.py", ONE_ACTION_SHORT),
    "constant": ("vla_runtime/wire.py", CONSTANT),
    "swapped": ("vla_runtime/policy.py", SWAPPED),
    "stale": ("vla_runtime/policy.py", STALE),
}


def broken(archive: Path, path: Path) -> Path:
    """Write an archive with more at the end of one of its files, under the name of its own file."""
    member, more = BROKEN[path.stem]
    with zipfile.ZipFile(archive) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            data = good.read(name) + (more.encode() if name == member else b"")
            if name == MANIFEST:
                manifest = json.loads(data)
                manifest["model"]["modelName"] = path.stem
                data = json.dumps(manifest).encode()
            bad.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def server(policy_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """All broken policies behind one server."""
    folder = tmp_path_factory.mktemp("broken")
    with serve(*(broken(policy_archive, folder / f"{name}.mar") for name in BROKEN)) as server:
        yield server


def test_policy_that_answers_wrong_shapes_misses_on_content(server: TorchServe, tmp_path: Path) -> None:
    run, report = load_test(server, tmp_path, "short", adversaries=0)

    assert run.returncode == 1, run.stdout + run.stderr
    assert "before the load: shape: actions have shape [7, 4], expected [8, 4]" in run.stdout
    assert "tier lenient is MISSED with 2 robots at 5 Hz: wrong answers, failures" in run.stdout
    assert set(report["judgement"]["errors"]) == {"wrong answer: shape"}
    assert report["judgement"]["examples"] == {
        "wrong answer: shape": "actions have shape [7, 4], expected [8, 4]"
    }


def test_policy_that_answers_all_requests_alike_misses(server: TorchServe, tmp_path: Path) -> None:
    run, report = load_test(server, tmp_path, "constant", adversaries=0, duration_s=2)

    assert run.returncode == 1, run.stdout + run.stderr
    assert "before the load: 5 different requests are answered by the same actions" in run.stdout
    (missed,) = [p for p in report["judgement"]["promises"] if p["verdict"] == "missed"]
    assert (missed["name"], missed["measured"]) == ("wrong answers", "0, and 1 before the load")


@pytest.mark.parametrize("model", ["swapped", "stale"], ids=["rows swapped", "an earlier batch again"])
def test_policy_that_is_wrong_only_in_batches_misses(server: TorchServe, tmp_path: Path, model: str) -> None:
    run, report = load_test(
        server, tmp_path, model, adversaries=0, scenario="burst", robots=6, warm_up_s=0, duration_s=4
    )

    assert run.returncode == 1, run.stdout + run.stderr
    assert "before the load" not in run.stdout
    assert report["judgement"]["errors"].keys() == {"wrong answer: actions"}
    assert max(map(int, report["batch_sizes"])) > 1

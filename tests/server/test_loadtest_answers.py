"""Answers of the right form that are wrong: the load test of a real server finds each out."""

import zipfile
from pathlib import Path

import pytest
from making import serve
from test_loadtest import load_test

# Appended to a file of the archive's own runtime.
CONSTANT = """

_whole = answer_body


def answer_body(answer, spec, *arguments):
    return _whole(answer, spec, *arguments) | {"actions": [list(row) for row in spec.example.actions]}
"""
SWAPPED = """

_whole = Policy.infer
Policy.infer = lambda *arguments: _whole(*arguments)[::-1]
"""
STALE = """

_whole, _kept = Policy.infer, {}


def _infer(self, rows, *arguments):
    answers = _whole(self, rows, *arguments)
    return answers if len(rows) == 1 else _kept.setdefault(len(rows), answers)


Policy.infer = _infer
"""


def broken(archive: Path, folder: Path, member: str, more: str) -> Path:
    """Write an archive with `more` at the end of one of its files."""
    path = folder / "vla.mar"
    with zipfile.ZipFile(archive) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name) + (more.encode() if name == member else b""))
    return path


def test_policy_that_answers_all_requests_alike_misses(policy_archive: Path, tmp_path: Path) -> None:
    with serve(broken(policy_archive, tmp_path, "vla_runtime/wire.py", CONSTANT)) as server:
        run, report = load_test(server, tmp_path, adversaries=0, duration_s=2)

    assert run.returncode == 1, run.stdout + run.stderr
    assert "before the load: 9 different requests are answered by the same actions" in run.stdout
    (missed,) = [p for p in report["judgement"]["promises"] if p["verdict"] == "missed"]
    assert (missed["name"], missed["measured"]) == ("wrong answers", "0, and 1 before the load")


@pytest.mark.parametrize("more", [SWAPPED, STALE], ids=["rows swapped", "an earlier batch again"])
def test_policy_that_is_wrong_only_in_batches_misses(policy_archive: Path, tmp_path: Path, more: str) -> None:
    with serve(broken(policy_archive, tmp_path, "vla_runtime/policy.py", more)) as server:
        run, report = load_test(
            server, tmp_path, adversaries=0, scenario="burst", robots=6, warm_up_s=0, duration_s=4
        )

    assert run.returncode == 1, run.stdout + run.stderr
    assert "before the load" not in run.stdout
    assert report["judgement"]["errors"].keys() == {"wrong answer: actions"}
    assert max(map(int, report["batch_sizes"])) > 1

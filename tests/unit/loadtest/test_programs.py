"""The measuring programs as commands: what they say without their packages, and their options."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.command import main

ROOT = Path(__file__).parents[3]
WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
program = sys.argv.pop(1)
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("missing", "program", "options"),
    [
        ("locust", "loadtest", []),
        ("tyro", "loadtest", []),
        ("matplotlib", "loadtest", ["--help"]),
        ("matplotlib", "bench", []),
        ("torch", "bench", ["--quick"]),
        ("torch", "bench", ["gpu"]),
        ("fastapi", "bench", ["--peers"]),
    ],
)
def test_program_without_its_packages_says_so_in_one_line(
    missing: str, program: str, options: list[str]
) -> None:
    ended = run("-c", WITHOUT, missing, program, *options)
    extra = "peers" if "--peers" in options else program

    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"error: {missing} is not installed: `make .venv/.{extra}` brings what this needs, or "
        f"`pip install -e '.[{extra}]'`"
    ]


@pytest.mark.parametrize("program", ["loadtest", "bench"])
def test_help_shows_every_default(program: str) -> None:
    said = re.sub(r"[│\s]+", " ", run("-m", program, "--help").stdout)

    options = re.findall(r"--(\w[\w-]*)", said.partition("options")[2])
    assert {"tier", "output"} & set(options)
    shown = said.count("(default: ") + said.count("(repeatable)")
    assert shown >= len({o for o in options if not o.startswith("no-")} - {"help"})


def test_help_shows_units() -> None:
    said = run("-m", "loadtest", "--help").stdout

    for option, unit in {"control-hz": "[Hz]", "duration-s": "[s]", "trial-s": "[s]"}.items():
        assert unit in said.partition(f"--{option}")[2].partition("(default:")[0]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--ca", "missing.crt"], "--ca: no certificate file at missing.crt"),
        (["--header", "x"], "--header must be NAME:VALUE, got 'x'"),
        (["--url", "robots.example"], "--url must begin with http:// or https://, got 'robots.example'"),
    ],
)
def test_wrong_option_is_named(option: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(option)
    except SystemExit as ended:  # of the command line's own
        status = ended.code

    assert status == 2
    assert said in re.sub(r"[│\s]+", " ", capsys.readouterr().err)


def test_make_passes_on_that_nothing_was_kept(tmp_path: Path) -> None:
    make = ["make", "-o", ".venv/.loadtest", "loadtest", f"PYTHON={sys.executable}", "PORT=9"]
    ended = subprocess.run(
        [*make, f"ARGS=--report {tmp_path}/report"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.returncode != 0
    assert "error: no description of model 'vla' at http://127.0.0.1:10" in ended.stderr

"""The built wheels, installed into empty environments."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import PIL.Image
import pytest
from policy_server import PICTURE, running_server

ROOT = Path(__file__).parents[3]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(
    *command: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=env, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def built(source: Path, folder: Path) -> Path:
    """Build the wheel of a copy of `source`, so that the checkout stays clean."""
    copy = folder / "source"
    files = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=source).stdout.split("\0")
    for file in filter(None, files):
        target = copy / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((source / file).read_bytes())
    run(*PIP, "wheel", "-q", "--no-deps", copy, "-w", folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the client's wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("client")
    wheel = built(ROOT / "client", folder)
    venv.create(folder / "env", symlinks=True)
    python = folder / "env" / "bin" / "python"
    run(*PIP, "--python", python, "install", "-q", wheel)
    return python


def test_the_clients_wheel_is_all_that_a_robot_needs(installed: Path, tmp_path: Path) -> None:
    PIL.Image.fromarray(PICTURE).save(tmp_path / "a.png")
    alone = {"PATH": os.environ["PATH"]}
    listed = run(*PIP, "--python", installed, "list", "--format", "freeze", env=alone).stdout.split()
    names = {line.partition("==")[0] for line in listed}
    assert names == {"msgspec", "numpy", "pillow", "urllib3", "vla-client"}

    program = "import vla_client, sys; print(vla_client.__file__); assert 'torch' not in sys.modules"
    said = run(installed, "-c", program, env=alone, cwd=tmp_path).stdout
    assert Path(said.strip()).is_relative_to(installed.parents[1])
    assert (Path(said.strip()).parent / "py.typed").exists()

    with running_server() as server:
        command = installed.with_name("vla-client")
        answer = run(command, "a.png", "lift it", "--url", server.url, env=alone, cwd=tmp_path).stdout
        assert "policy      tabletop 1.0, request r-1" in answer
        run(installed, "-m", "vla_client", "a.png", "lift it", "--url", server.url, env=alone, cwd=tmp_path)
    assert [fields["command"] for _, _, fields in server.requests] == [(None, b"lift it")] * 2


def test_the_checkouts_wheel_installs_no_module(tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "NOTICE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for package in ("server", "vla", "bench", "client"):
        (source / package).mkdir()
        (source / package / "__init__.py").touch()
    run(*PIP, "wheel", "-q", "--no-deps", source, "-w", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as opened:
        assert {name.split("/")[0] for name in opened.namelist()} == {"vla_serve-0.1.0.dist-info"}

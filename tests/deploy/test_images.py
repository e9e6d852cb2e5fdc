"""The built images, run as they are meant to run: read-only, without capabilities, as a user, within limits.

Needs IMAGE and PROXY_IMAGE, and ENGINE (docker or podman) where they are: `make test-image` sets them.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from closed_loop import Load

from archive.digest import digest
from archive.read import Archive
from bench.faults.processes import ROOT, STARTUP_TIMEOUT_S
from server.ports import free_port

IMAGE, PROXY_IMAGE = os.environ.get("IMAGE", ""), os.environ.get("PROXY_IMAGE", "")
ENGINE = os.environ.get("ENGINE", "docker")
HARDENED = [
    *("--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev,size=512m,mode=1777"),
    *("--cap-drop=ALL", "--security-opt", "no-new-privileges", "--pids-limit=512", "--memory=3g"),
]
LARGEST_IMAGE_MB = 800
CHECKPOINT = ROOT / "checkpoints" / "grounded"
KEY = "Robot-1-of-the-tests"
HEADERS = {"X-API-Key": KEY}

pytestmark = pytest.mark.skipif(not (IMAGE and PROXY_IMAGE), reason="no images given: run `make test-image`")


def engine(*arguments: object, check: bool = True) -> str:
    run = subprocess.run(
        [ENGINE, *map(str, arguments)], capture_output=True, text=True, timeout=180, check=False
    )
    assert not check or run.returncode == 0, f"{ENGINE} {arguments}: {run.stderr}"
    return run.stdout.strip()


@dataclass(frozen=True)
class Container:
    """A running container."""

    name: str

    @property
    def running(self) -> bool:
        return engine("inspect", "-f", "{{.State.Running}}", self.name) == "true"

    @property
    def status(self) -> int:
        """Exit status; waits for the end."""
        return int(engine("wait", self.name))

    def logs(self) -> str:
        run = subprocess.run([ENGINE, "logs", self.name], capture_output=True, text=True, check=False)
        return run.stdout + run.stderr

    def sh(self, command: str) -> str:
        return engine("exec", self.name, "sh", "-c", command)


@contextmanager
def container(image: str, name: str, *options: object, command: Sequence[str] = ()) -> Iterator[Container]:
    engine("rm", "-f", name, check=False)
    engine("run", "-d", "--name", name, *HARDENED, *options, image, *command)
    try:
        yield Container(name)
    finally:
        engine("rm", "-f", name, check=False)


@dataclass(frozen=True)
class Deployment:
    """A replica behind the proxy, which listens on a port of this machine."""

    server: Container
    proxy: Container
    url: str


@pytest.fixture(scope="module")
def store(policy_archive: Path) -> Path:
    """A model store that the image's user may read."""
    digest = subprocess.run(["sha256sum", policy_archive], capture_output=True, text=True, check=True)
    policy_archive.with_name(policy_archive.name + ".sha256").write_text(digest.stdout)
    for place in (policy_archive.parent, *policy_archive.parent.parents[:2]):
        place.chmod(0o755)
    policy_archive.chmod(0o644)
    return policy_archive.parent


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A file of API keys that the proxy's user may read."""
    path = tmp_path / "keys"
    path.write_text(f"{KEY} robot-1\n")
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    path.chmod(0o644)
    return path


@pytest.fixture
def deployment(store: Path, keys: Path) -> Iterator[Deployment]:
    name, port = f"vla-test-{os.getpid()}", free_port()
    engine("network", "create", name)
    options = ("--network", name, "-v", f"{store}:/models:ro")
    try:
        with container(IMAGE, f"{name}-server", *options) as server:
            wait_until(lambda: healthy(server), server)
            settings = ("-e", f"REPLICAS={address(server)}:8080", "-e", "AUTH=keys", "-e", "RATE=100000r/s")
            secrets = ("-v", f"{keys}:/run/secrets/api_keys:ro")
            published = ("--network", name, *secrets, "-p", f"127.0.0.1:{port}:8080")
            with container(PROXY_IMAGE, f"{name}-proxy", *settings, *published) as proxy:
                wait_until(lambda: healthy(proxy), proxy)
                yield Deployment(server, proxy, f"http://127.0.0.1:{port}")
    finally:
        engine("network", "rm", name, check=False)


def under_load(deployment: Deployment, store: Path) -> Load:
    example = Archive.open(store / "vla.mar").example
    assert example is not None
    url = f"{deployment.url}/predictions/vla"
    return Load(url, files=example.images, data=example.fields, headers=HEADERS)


def address(one: Container) -> str:
    return engine("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", one.name)


def healthy(one: Container) -> bool:
    """Run the image's own HEALTHCHECK."""
    check = engine("inspect", "-f", '{{join .Config.Healthcheck.Test " "}}', one.name)
    arguments = [word for word in shlex.split(check.strip("[]")) if word not in ("CMD", "CMD-SHELL")]
    run = subprocess.run([ENGINE, "exec", one.name, *arguments], capture_output=True, check=False, timeout=30)
    return run.returncode == 0


def wait_until(condition: object, one: Container) -> None:
    assert callable(condition)
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    while not condition():
        if not one.running or time.monotonic() > deadline:
            pytest.fail(f"{one.name} did not get there:\n{one.logs()[-3000:]}")
        time.sleep(0.2)


def test_readmes_request_is_answered_by_a_hardened_container(deployment: Deployment) -> None:
    (request,) = re.findall(
        r"^curl -F image=.*?(?=\n```)", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    command = request.replace("http://127.0.0.1:8080", deployment.url).replace(
        "curl ", f"curl -sSf -H 'X-API-Key: {KEY}' ", 1
    )

    answer = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)

    assert answer.returncode == 0, answer.stderr
    assert '"action_names":' in answer.stdout
    for one in (deployment.server, deployment.proxy):
        status = one.sh("cat /proc/1/status")
        assert re.search(r"^Uid:\s+10001\s+10001\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0{16}$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
        assert (
            one.sh(
                "touch /app/x /models/x /etc/x 2>/dev/null; ls /app/x /models/x /etc/x 2>/dev/null | wc -l"
            )
            == "0"
        )
    assert requests.get(deployment.url + "/metrics", timeout=10).status_code == 404


def test_swap_under_load_loses_nothing(deployment: Deployment, store: Path) -> None:
    new = store / "next.mar"
    command = [sys.executable, "-m", "export", CHECKPOINT, "--output", new, "--version", "2.0"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    new.with_name("next.mar.sha256").write_text(digest(new))
    for file in (new, new.with_name("next.mar.sha256")):
        file.chmod(0o644)
    with under_load(deployment, store) as load:
        load.wait_for(100)
        said = deployment.server.sh("python -m server.swap /models/next.mar")
        load.wait_for(100)

    assert said.endswith("vla 2.0 serves; 1.0 is removed")
    assert set(load.outcomes) == {200}
    assert load.views == [["1.0", "2.0"]] * 16
    versions = deployment.server.sh(
        "python -c \"import requests; print(requests.get('http://127.0.0.1:8091/models/vla/all').text)\""
    )
    assert re.findall(r'"modelVersion": "([^"]*)"', versions) == ["2.0"]


def test_an_archive_larger_than_memory_for_files_starts(store: Path, tmp_path: Path) -> None:
    """1 GB unpacked, beside a tmpfs of 512 MiB."""
    large = store / "large.mar"
    shutil.copy(store / "vla.mar", large)
    with (tmp_path / "ballast").open("wb") as file:
        file.truncate(1_000_000_000)
    with zipfile.ZipFile(large, "a") as mar:
        mar.write(tmp_path / "ballast", "ballast", zipfile.ZIP_STORED)
    large.with_name("large.mar.sha256").write_text(digest(large))
    name = f"vla-test-{os.getpid()}-large"
    options = ("-v", f"{store}:/models:ro", "--entrypoint", "python")
    serve = ("-m", "server.container", "--archive", "/models/large.mar")
    try:
        with container(IMAGE, name, *options, command=serve) as server:
            wait_until(lambda: healthy(server), server)
    finally:
        large.unlink()


def test_stop_under_load_loses_nothing(deployment: Deployment, store: Path) -> None:
    with under_load(deployment, store) as load:
        load.wait_for(200)
        engine("stop", "-t", 60, deployment.server.name)
        time.sleep(0.5)

    print(f"stopped under load: {dict(load.outcomes)}")
    assert deployment.server.status == 0
    assert set(load.outcomes) == {200, 503}  # answered, or refused with Retry-After before it was taken
    assert load.wrong == []


def test_killed_worker_under_load_loses_nothing(deployment: Deployment, store: Path) -> None:
    with under_load(deployment, store) as load:
        load.wait_for(100)
        deployment.server.sh("pkill -9 -f '[m]odel_service_worker'")
        load.wait_for(100)

    print(f"a worker killed under load: {dict(load.outcomes)}")
    assert set(load.outcomes) <= {200, 503}  # answered, or refused with Retry-After
    assert load.wrong == []


def test_keys_are_read_again_under_load(deployment: Deployment, store: Path, keys: Path) -> None:
    def status(key: str) -> int:
        return requests.get(
            f"{deployment.url}/predictions/vla", headers={"X-API-Key": key}, timeout=10
        ).status_code

    with under_load(deployment, store) as load:
        load.wait_for(100)
        assert status("second") == 401
        with keys.open("a") as file:
            file.write("second robot-2\n")
        wait_until(lambda: status("second") != 401, deployment.proxy)
        load.wait_for(100)

    assert set(load.outcomes) == {200}


def test_killed_jvm_is_an_error(deployment: Deployment) -> None:
    deployment.server.sh("kill -9 $(cat /proc/[0-9]*/stat | awk '$2 == \"(java)\" {print $1}')")

    assert deployment.server.status == 1
    assert "error: TorchServe ended by itself with status -9" in deployment.server.logs()
    answer = requests.post(f"{deployment.url}/predictions/vla", data=b"x", headers=HEADERS, timeout=30)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_wrong_archive_is_not_started(store: Path) -> None:
    engine_run = [ENGINE, "run", "--rm", *HARDENED, "-v", f"{store}:/models:ro", IMAGE, "--sha256", "0" * 64]
    run = subprocess.run(engine_run, capture_output=True, text=True, timeout=60, check=False)

    assert run.returncode == 1
    assert f"expected {'0' * 64}: not loaded" in run.stderr


def test_image_is_small() -> None:
    size_mb = int(engine("image", "inspect", "-f", "{{.Size}}", IMAGE)) / 1e6
    print(f"{IMAGE}: {size_mb:.0f} MB")

    assert size_mb <= LARGEST_IMAGE_MB
    assert "pip" not in engine(
        "run",
        "--rm",
        "--entrypoint",
        "sh",
        IMAGE,
        "-c",
        "ls /opt/venv/bin /usr/bin | grep -E '^(pip|gcc|cc|g\\+\\+)' || true",
    )

"""Several real policies behind one replica and the proxy: each under its name, one swapped under load."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from closed_loop import Load
from sources import choosing, grey, png, turning
from test_swap import swap

from bench.faults.processes import Running, proxy, replica
from export.export import Options, archived
from export.source import Source

PICTURE = {"image": png(grey(200))}


def exported(source: Source, path: Path, version: str = "1.0") -> Path:
    """Export a source under a file's name, and write its digest."""
    archived(source, Options("a test", path, version=version, buckets=(1, 2, 4)))
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    """A model store of its own: `choosing` gives names, `turning` numbers."""
    store = folder / "several"
    store.mkdir()
    exported(choosing(store), store / "choosing.mar")
    exported(turning(), store / "turning.mar")
    return store


@pytest.fixture(scope="module")
def several(store: Path, folder: Path) -> Iterator[Running]:
    with replica([store / "choosing.mar", store / "turning.mar"], folder) as running:
        yield running


@pytest.fixture(scope="module")
def front(several: Running, folder: Path) -> Iterator[Running]:
    with proxy(folder, several.port) as running:
        yield running


def versions(running: Running, name: str) -> list[str]:
    url = f"http://127.0.0.1:{running.torchserve_port + 1}/models/{name}/all"
    return [model["modelVersion"] for model in requests.get(url, timeout=10).json()]


def test_each_policy_answers_under_its_name(front: Running) -> None:
    chosen = requests.post(
        f"{front.url}/predictions/choosing", files=PICTURE, data={"command": "lift"}, timeout=30
    )
    turned = requests.post(f"{front.url}/predictions/turning", files=PICTURE, timeout=30)

    assert chosen.json()["actions"][0]["name"] == "stop"
    assert len(turned.json()["actions"][0]) == 5
    assert requests.post(f"{front.url}/predictions/vla", files=PICTURE, timeout=30).status_code == 404


def test_a_discrete_policy_is_swapped_and_the_other_serves_on(
    front: Running, several: Running, store: Path
) -> None:
    new = exported(choosing(store), store / "choosing-2.mar", "2.0")
    with (
        Load(f"{front.url}/predictions/choosing", 4, PICTURE, {"command": "lift"}) as discrete,
        Load(f"{front.url}/predictions/turning", 4, PICTURE, {}) as continuous,
    ):
        discrete.wait_for(50)
        unnamed = swap(several, new)
        run = swap(several, new, "--model", "choosing")
        discrete.wait_for(50)
        continuous.wait_for(50)

    assert "error: which of choosing, turning is to be replaced? Name it by --model\n" in unnamed.stderr
    assert (run.returncode, run.stdout.endswith("choosing 2.0 serves; 1.0 is removed\n")) == (0, True), (
        run.stderr
    )
    assert (set(discrete.outcomes), set(continuous.outcomes)) == ({200}, {200})
    assert discrete.views == [["1.0", "2.0"]] * 4
    assert continuous.views == [["1.0"]] * 4
    assert (versions(several, "choosing"), versions(several, "turning")) == (["2.0"], ["1.0"])


def test_the_archive_says_how_far_its_answers_may_differ(store: Path) -> None:
    from archive.read import read_policy  # noqa: PLC0415

    discrete, continuous = (read_policy(store / name) for name in ("choosing.mar", "turning.mar"))

    assert discrete["provenance"]["example_tolerance"] == {
        "judged_by": "largest_difference",
        "units": [0.001] * 4,
    }
    assert len(continuous["provenance"]["example_tolerance"]["units"]) == 5
    assert json.dumps(discrete["example"]["names"]) == '["stop"]'

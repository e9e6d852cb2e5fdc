"""What every imported policy must do over HTTP: answer what its library computed, alone and in a batch."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from golden.drawn import picture
from golden.folders import rebuilt, recorded
from making import STARTUP_TIMEOUT_S, running
from sources import png

from export.__main__ import main as export_command
from server.ports import free_port
from server.process import TorchServe


def imported(name: str, origin: str, names: str, folder: Path, *more: object) -> Path:
    """Export a golden folder by the command that docs/import.md shows; its names are in the file `names`."""
    golden, output = rebuilt(name, folder), folder / f"{name}.mar"
    arguments = ["--from", origin, golden, "--names", golden / "meta" / names, *more]
    arguments += ["--buckets", "1", "2", "4", "--output", output]
    with one_thread():
        export_command([str(part) for part in arguments])
    return output


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """So small a policy is traced sooner by one thread, on a busy machine by far."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def together(archives: Iterable[Path]) -> Iterator[TorchServe]:
    """Serve several archives behind one server."""
    with TorchServe(list(archives), port=free_port(), startup_timeout_s=2 * STARTUP_TIMEOUT_S) as server:
        running.append(server)
        try:
            yield server
        finally:
            running.remove(server)


def check_answers(url: str, name: str, allowed: float = 1e-4) -> None:
    """Send the golden requests one by one and many at once, and compare with the library's actions.

    `allowed` is a share of the training data's range.
    """
    golden = recorded(name)
    bodies = [body(golden["sizes"], request) for request in golden["requests"]]

    def ask(files: dict[str, bytes], data: dict[str, str]) -> requests.Response:
        return requests.post(f"{url}/predictions/{name}", files=files, data=data, timeout=60)

    alone = [ask(*one) for one in bodies]
    together, shared = list[requests.Response](), False
    with ThreadPoolExecutor(12) as pool:
        for _ in range(5):  # on a busy machine one volley may arrive one by one
            many = [pool.submit(ask, *one) for _ in range(3) for one in bodies]
            together = [future.result() for future in many]
            shared = any(answer.json()["timing_ms"]["batch_size"] > 1 for answer in together)
            if shared:
                break

    assert shared, "no two requests shared a batch"
    pairs = zip([*alone, *together], golden["requests"] * 4, strict=True)
    largest = max(difference(*pair, golden) for pair in pairs)
    print(f"{name}: {largest:.1e} of the range")
    assert largest <= allowed
    actions = np.array([request["actions"] for request in golden["requests"]])
    assert (np.ptp(actions, axis=0) / golden["range"]).max() > 0.1, (
        "the requests must differ in their answers"
    )


def body(sizes: dict[str, Any], request: dict[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return a request as a robot sends it: with two steps or more, every field once a step."""
    files, steps = {}, request["steps"]
    for place, step in enumerate(steps):
        for key, seed in step["pictures"].items():
            field = key.replace("observation.images.", "image.").replace("observation.", "")
            file = png(picture(seed, *sizes[key]))
            files[field if len(steps) == 1 else f"{field}.{place}"] = file
    states = [step["state"] for step in steps]
    state = states[0] if len(steps) == 1 else states
    told = {"command": request["command"]} if "command" in request else {}
    return files, told | {"state": json.dumps(state), "seed": str(request["seed"])}


def difference(answer: requests.Response, request: dict[str, Any], golden: dict[str, Any]) -> float:
    """Return the largest difference from the library's actions, as a share of the training data's range."""
    assert answer.status_code == 200, answer.text
    assert answer.json()["safety"]["status"] == "ok"
    expected, got = np.array(request["actions"]), np.array(answer.json()["actions"])
    assert got.shape == expected.shape
    return float((np.abs(got - expected) / golden["range"]).max())

"""What every imported policy must do over HTTP: answer what its library computed, alone and in a batch."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import requests
from golden.drawn import picture
from golden.folders import recorded
from sources import png


def check_answers(url: str, name: str) -> None:
    """Send the golden requests one by one and many at once, and compare with the library's actions."""
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
    assert max(difference(*pair, golden) for pair in pairs) <= 1e-4
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

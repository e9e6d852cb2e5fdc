"""What goes wrong on a GPU host, provoked: each case in a process of its own, whose state nobody needs."""

import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from bench.gpu.measure import answers, rows
from bench.gpu.policies import in_process, of_architecture, of_size
from vla_runtime.errors import RequestError
from vla_runtime.policy import Answer


def provoked(device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what became of each case, by its name."""
    cases = [_two_policies, _loaded_beside]
    cases += [] if device == "cpu" else [_out_of_memory, _capture_refused, _device_lost]
    found = {}
    for case in cases:
        name = case.__name__.removeprefix("_").replace("_", " ")
        found[name] = _apart(case, device)
        say(f"{name}: {found[name]}")
    return found


def _apart(case: Callable[[str], dict[str, Any]], device: str) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(case, device).result(timeout=90)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error)[:300]}", "ok": False}


def _two_policies(device: str) -> dict[str, Any]:
    """Two policies on one device answer in turns as each alone."""
    requests = rows(4)
    made = [in_process(of_architecture(name), device) for name in ("command_attention", "flow")]
    alone = [answers(policy, requests) for policy in made]
    turns = [np.abs(answers(made[i % 2], requests) - alone[i % 2]).max() for i in range(20)]
    worst = float(max(turns))
    return {"largest_difference": worst, "ok": worst <= 1e-4}


def _loaded_beside(device: str) -> dict[str, Any]:
    """While another version loads, captures and warms up, the first one's answers stay right."""
    requests = rows(4)
    serving = in_process(of_architecture("command_attention"), device)
    right = answers(serving, requests)
    errors: list[str] = []

    def load() -> None:
        try:
            in_process(of_architecture("early_fusion"), device).warm_up()
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=load)
    thread.start()
    worst, asked = 0.0, 0
    while thread.is_alive():
        worst = max(worst, float(np.abs(answers(serving, requests) - right).max()))
        asked += 1
    return {
        "largest_difference": worst,
        "batches": asked,
        "errors": errors,
        "ok": worst <= 1e-4 and not errors,
    }


def _capture_refused(device: str) -> dict[str, Any]:
    """A module that waits for the device can't be captured: it is served without a graph, and rightly."""
    requests = rows(4)
    source = of_architecture("command_attention")
    right = answers(in_process(source, device), requests)
    policy = in_process(source, device)
    inner: Any = source.model
    act = inner.model.act

    def waiting(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = act(*inputs)
        scale = 1.0 if outputs["actions"].sum().item() > -1e9 else 0.0
        return {name: value * scale for name, value in outputs.items()}

    inner.model.act = waiting
    difference = float(np.abs(answers(policy, requests) - right).max())
    # What a failed capture leaves open must not reach others: random numbers, or another policy's graphs.
    torch.randn(4, device=device)
    other = in_process(of_architecture("flow"), device)
    other.warm_up()
    return {
        "graphs": policy.graphs,
        "next_policy_has_graphs": other.graphs,
        "largest_difference": difference,
        "ok": not policy.graphs and other.graphs and difference <= 1e-4,
    }


def _out_of_memory(device: str) -> dict[str, Any]:
    """A batch that does not fit gets 503s, and the next one is answered."""
    source = of_size("ViT-B/32")
    policy = in_process(source, device, graphs=False)
    requests = rows(32)
    right = answers(policy, requests[:1])
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - (8 << 20)), dtype=torch.uint8, device=device)
    # Its rows are asked one by one after it, and each fits or is refused alone.
    asked = policy.infer(requests)
    codes = sorted({answer.code if isinstance(answer, RequestError) else "ok" for answer in asked})
    del ballast
    torch.cuda.empty_cache()
    after = policy.infer(requests[:1])[0]
    same = isinstance(after, Answer) and float(np.abs(answers(policy, requests[:1]) - right).max()) <= 1e-4
    return {"answers": codes, "ok": set(codes) <= {"ok", "policy_failed"} and same}


def _device_lost(device: str) -> dict[str, Any]:
    """A device-side assertion ends the process's use of the device: it is told apart from other errors."""
    memory, beyond = torch.zeros(4, device=device), torch.tensor([9], device=device)
    try:
        memory[beyond].sum().item()
    except torch.AcceleratorError as error:
        return {"is": "torch.AcceleratorError", "says": str(error).splitlines()[0], "ok": True}
    return {"is": "nothing", "ok": False}

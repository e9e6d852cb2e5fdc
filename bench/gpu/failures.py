"""What goes wrong on a GPU host, provoked: each case in a process of its own, whose state nobody needs."""

import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from bench.answers import actions
from bench.gpu.part import Findings, Run, said
from bench.policies import in_process, of_architecture, of_size, robot_requests
from loadtest.document import Table
from vla.exportable import Exportable
from vla_runtime.errors import RequestError

# Largest difference of an answer from that of the policy alone, in normalised units.
ALLOWED = 1e-4


class Case(NamedTuple):
    """What became of one of them."""

    held: bool
    details: str


def failures(run: Run) -> Findings:
    """Provoke what goes wrong, and see that neighbours keep their answers."""
    cases = [two_policies, loaded_beside]
    cases += [capture_refused, device_lost] if run.on_gpu else []
    with ThreadPoolExecutor() as threads:  # each waits for its case's process
        found = dict(zip(cases, threads.map(partial(_apart, device=run.device), cases), strict=True))
    if run.on_gpu:  # alone: it leaves no memory to others
        found[out_of_memory] = _apart(out_of_memory, run.device)
    for case, became in found.items():
        run.say(f"{_name(case)}: {'' if became.held else 'NOT '}held, {became.details}")
    rows = [
        (_name(case), "yes" if became.held else "**no**", became.details) for case, became in found.items()
    ]
    table = Table(("what goes wrong", "held", "details"), rows)
    figures = {_name(case): became for case, became in found.items()}
    return Findings.of([table], figures, ok=all(became.held for became in found.values()))


def _name(case: Callable[[str], Case]) -> str:
    return case.__name__.replace("_", " ")


def _apart(case: Callable[[str], Case], device: str) -> Case:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return process.submit(case, device).result(timeout=90)
        except Exception as error:  # whatever it is, it belongs into the report
            return Case(held=False, details=said(error))


def two_policies(device: str) -> Case:
    """Two policies on one device answer in turns as each alone."""
    requests = robot_requests(4)
    made = [in_process(of_architecture(name), device) for name in ("command_attention", "flow")]
    alone = [actions(policy, requests) for policy in made]
    worst = max(_off(actions(made[i % 2], requests), alone[i % 2]) for i in range(20))
    return Case(worst <= ALLOWED, f"largest difference {worst:.1e}")


def loaded_beside(device: str) -> Case:
    """While another version loads, captures and warms up, the first one's answers stay right."""
    requests = robot_requests(4)
    serving = in_process(of_architecture("command_attention"), device)
    right = actions(serving, requests)
    errors: list[str] = []

    def load() -> None:
        try:
            in_process(of_architecture("early_fusion"), device).warm_up()
        except Exception as error:
            errors.append(said(error))

    thread = threading.Thread(target=load)
    thread.start()
    worst, asked = 0.0, 0
    while thread.is_alive():
        worst = max(worst, _off(actions(serving, requests), right))
        asked += 1
    details = [f"largest difference {worst:.1e} in {asked} batches", *errors]
    return Case(worst <= ALLOWED and not errors, "; ".join(details))


def capture_refused(device: str) -> Case:
    """A module that waits for the device can't be captured: it is served without a graph, and rightly."""
    requests = robot_requests(4)
    source = of_architecture("command_attention")
    right = actions(in_process(source, device), requests)
    policy = in_process(source, device)
    model = cast("Exportable", source.model).model
    act = model.act

    def waiting(
        images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        outputs = act(images, command, command_mask, state, noise)
        scale = 1.0 if outputs["actions"].sum().item() > -1e9 else 0.0
        return {name: value * scale for name, value in outputs.items()}

    model.act = waiting
    off = _off(actions(policy, requests), right)
    # What a failed capture leaves open must not reach others: random numbers, or another policy's graphs.
    torch.randn(4, device=device)
    other = in_process(of_architecture("flow"), device)
    other.warm_up()
    details = f"graphs {policy.graphs}, those of the next policy {other.graphs}, largest difference {off:.1e}"
    return Case(not policy.graphs and other.graphs and off <= ALLOWED, details)


def out_of_memory(device: str) -> Case:
    """A batch that does not fit gets 503s, and the next one is answered."""
    policy = in_process(of_size("ViT-B/32"), device, graphs=False)
    requests = robot_requests(32)
    right = actions(policy, requests[:1])
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - (8 << 20)), dtype=torch.uint8, device=device)
    # Its rows are asked one by one after it, and each fits or is refused alone.
    asked = policy.infer(requests)
    codes = {answer.code if isinstance(answer, RequestError) else "ok" for answer in asked}
    del ballast
    torch.cuda.empty_cache()
    off = _off(actions(policy, requests[:1]), right)
    return Case(codes <= {"ok", "policy_failed"} and off <= ALLOWED, f"answers {', '.join(sorted(codes))}")


def device_lost(device: str) -> Case:
    """A device-side assertion ends the process's use of the device: it is told apart from other errors."""
    memory, beyond = torch.zeros(4, device=device), torch.tensor([9], device=device)
    try:
        memory[beyond].sum().item()
    except torch.AcceleratorError as error:
        return Case(held=True, details=f"torch.AcceleratorError: {str(error).splitlines()[0]}")
    return Case(held=False, details="no error")


def _off(got: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(got - right).max())

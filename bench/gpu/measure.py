"""What the parts have in common: requests, the ceilings of a device, times of its work."""

import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy

COMMANDS = ("pick up the red block", "push the blue cube away", "reach", "lift the green one, please")


def rows(count: int, size: tuple[int, int] = (640, 480), *, seed: int = 0) -> list[Row]:
    """Return requests as a robot sends them: distinct JPEG pictures of about 60 KB, command, state, seed."""
    random = np.random.default_rng(seed)
    made: list[Row] = []
    for index in range(count):
        coarse = random.integers(0, 256, (size[1] // 16, size[0] // 16, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
        state = random.uniform(-0.5, 0.5, 4).round(3).tolist()
        made.append({"image": file.getvalue(), "command": COMMANDS[index % 4], "state": state, "seed": index})
    return made


def answers(policy: Policy, requests: Sequence[Row]) -> np.ndarray:
    """Return the actions of a batch in normalised units, float32 [B, T, A]; a refused request is an error."""
    found = policy.infer(requests)
    if bad := [answer for answer in found if not isinstance(answer, Answer)]:
        raise RuntimeError(f"a request was refused: {bad[0]}")
    scale: Any = policy.spec.action
    return np.stack([a.chunk.actions for a in found if isinstance(a, Answer)]) / scale.scale


def median_s(step: Callable[[], object], *, seconds: float = 1.0, least: int = 10) -> float:
    """Return the median time of a step that waits for its own result [s], after three warm-ups."""
    for _ in range(3):
        step()
    taken, began = [], time.perf_counter()
    while len(taken) < least or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        step()
        taken.append(time.perf_counter() - before)
    return float(np.median(taken))


def device_s(step: Callable[[], object], *, repeats: int = 20) -> float:
    """Return the median time of asynchronous work between two events of the device [s]."""
    for _ in range(3):
        step()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)
    ]
    for begin, end in events:
        begin.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return float(np.median([begin.elapsed_time(end) for begin, end in events])) / 1000


def ceilings(device: str) -> dict[str, float]:
    """Measure what the device can do: matrix products [TFLOP/s], copies read and written [GB/s]."""
    found: dict[str, float] = {}
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
        found[f"{name}_tflops"] = 2 * 8192**3 / device_s(lambda a=a, b=b: a @ b, repeats=10) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gbs"] = 2 * source.numel() / device_s(lambda: target.copy_(source), repeats=10) / 1e9
    return found

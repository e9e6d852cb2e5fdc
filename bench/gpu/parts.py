"""The parts of the check, each a function that returns what it found; none needs the network."""

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from archive.read import unpack
from bench.gpu import http
from bench.gpu.failures import provoked
from bench.gpu.measure import answers, ceilings, median_s, rows
from bench.gpu.policies import BUCKETS, ROOT, SIZES, in_process, of_architecture, of_size
from export.export import Options, archived, export
from export.source import Source
from vla.models import ARCHITECTURES
from vla_runtime.policy import Policy
from vla_runtime.spec import Format, Precision

DEFAULT = ROOT / "checkpoints" / "command_attention"
# Largest difference of a GPU's actions from the CPU's, in normalised units.
ALLOWED: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.2}


@dataclass(frozen=True)
class Run:
    """Where the parts run, how long they may take, and where they say what they do."""

    device: str
    # When a part is to stop taking up new work [s, monotonic].
    until_s: float
    say: Callable[[str], None]

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU at all."""
        return self.device != "cpu"

    @property
    def spent(self) -> bool:
        """Whether the part's time is over."""
        return time.monotonic() > self.until_s


def tests(run: Run) -> dict[str, Any]:
    """Run the tests that need a GPU, and those of the device's choice."""
    files = ["tests/unit/runtime/test_staging.py", "tests/unit/runtime/test_device.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    run.say(lines[-1])
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return {"status": done.returncode, "summary": lines[-1], "failed": failed, "ok": done.returncode == 0}


def parity(run: Run) -> dict[str, Any]:
    """Compare archives of every architecture on the device with the same archive on the CPU."""
    cases: list[tuple[str, Format, Precision]] = [(name, "torchscript", "float32") for name in ARCHITECTURES]
    if run.on_gpu:
        cases.append(("command_attention", "pt2", "float32"))
    cases.extend((name, "torchscript", "bfloat16") for name in ARCHITECTURES)
    if run.on_gpu:
        compiled: list[str] = ["flow", "realtime"]
        cases.extend((name, "pt2", "float32") for name in compiled)
    found: list[dict[str, Any]] = []
    for name, format_, precision in cases:
        if run.spent:
            found.append({"architecture": name, "format": format_, "precision": precision, "skipped": "time"})
            continue
        found.append(_compared(run, name, format_, precision))
        run.say(f"{name} {format_} {precision}: {found[-1].get('difference', found[-1].get('error'))}")
    judged = [case for case in found if "skipped" not in case]
    return {"cases": found, "ok": all(case.get("ok") for case in judged)}


def _compared(run: Run, name: str, format_: Format, precision: Precision) -> dict[str, Any]:
    case: dict[str, Any] = {"architecture": name, "format": format_, "precision": precision}
    requests = rows(5)
    try:
        source = of_architecture(name)
        eager = answers(in_process(source, "cpu"), requests)
        with tempfile.TemporaryDirectory() as folder:
            unpacked = _archive(source, Path(folder), run, format_, precision)
            policy = Policy.load(unpacked, run.device)
            policy.warm_up()
            got = np.concatenate([answers(policy, requests), answers(policy, requests[:1])])
            case["graphs"] = policy.graphs
    except Exception as error:  # whatever it is, it belongs into the report
        return case | {"error": f"{type(error).__name__}: {str(error)[:300]}", "ok": False}
    difference = float(np.abs(got - np.concatenate([eager, eager[:1]])).max())
    return case | {"difference": difference, "ok": difference <= ALLOWED[precision]}


def _archive(source: Source, folder: Path, run: Run, format_: Format, precision: Precision) -> Path:
    """Export a source, and unpack its archive."""
    device = "cuda" if run.on_gpu and format_ == "pt2" else "cpu"
    options = Options(
        "random weights",
        folder / "policy.mar",
        buckets=(1, 2, 4, 8),
        format=format_,
        precision=precision,
        device=device,
        tolerance=1e-2 if precision == "float32" else 1.0,
    )
    archived(source, options)
    return unpack(options.output, folder / "unpacked")


def speed(run: Run) -> dict[str, Any]:
    """Measure latency and throughput by bucket, with and without graphs, beside the device's limits."""
    if not run.on_gpu:
        return {"skipped": "needs a GPU", "ok": True}
    limits = ceilings(run.device)
    run.say(", ".join(f"{name} {value:.0f}" for name, value in limits.items()))
    found = []
    default = of_architecture("command_attention")
    plans: list[tuple[str, Callable[[], Source], list[tuple[Precision, bool]]]] = [
        ("command_attention", lambda: default, [("float32", False), ("float32", True), ("bfloat16", False)])
    ]
    for name in SIZES:
        kinds: list[tuple[Precision, bool]] = [("float32", False), ("float32", True), ("bfloat16", False)]
        kinds = kinds if name != "3 billion" else [("bfloat16", False)]
        plans.append((name, lambda name=name: of_size(name), kinds))
    for name, make, kinds in plans:
        for precision, tf32 in kinds:
            if run.spent:
                found.append({"policy": name, "precision": precision, "tf32": tf32, "skipped": "time"})
                continue
            with torch.device(run.device):
                source = make()
            about = {"policy": name, "precision": precision, "tf32": tf32}
            found.append(_speed_of(run, source, about, limits))
            torch.cuda.empty_cache()
    return {"ceilings": limits, "policies": found, "ok": all("error" not in one for one in found)}


def _speed_of(run: Run, source: Source, about: dict[str, Any], limits: dict[str, float]) -> dict[str, Any]:
    name, precision, tf32 = about["policy"], about["precision"], about["tf32"]
    try:
        weights = sum(parameter.numel() for parameter in source.model.parameters())
        policy = in_process(source, run.device, precision, tf32=tf32)
        plain = in_process(source, run.device, precision, tf32=tf32, graphs=False)
        prepared = [policy.prepare(row) for row in rows(max(BUCKETS))]
        buckets = []
        for size in BUCKETS:
            batch = prepared[:size]
            took_s = median_s(lambda b=batch: policy.compute(b), seconds=0.5)
            eager_s = median_s(lambda b=batch: plain.compute(b), seconds=0.5)
            with FlopCounterMode(display=False) as counter:
                plain.compute(batch)
            flops = counter.get_total_flops()
            kind = "bfloat16" if precision == "bfloat16" else ("tf32" if tf32 else "float32")
            width = 2 if precision == "bfloat16" else 4
            floor_s = max(flops / limits[f"{kind}_tflops"] / 1e12, weights * width / limits["copy_gbs"] / 1e9)
            buckets.append(
                {"batch": size, "ms": took_s * 1e3, "eager_ms": eager_s * 1e3, "hz": size / took_s}
                | {"gflop": flops / 1e9, "floor_ms": floor_s * 1e3, "of_floor": floor_s / took_s}
            )
        run.say(
            f"{name} {precision}{' tf32' if tf32 else ''}: "
            + ", ".join(f"{b['batch']}: {b['ms']:.2f} ms ({b['eager_ms']:.2f})" for b in buckets)
        )
        about |= {"parameters": weights, "graphs": policy.graphs, "buckets": buckets}
    except Exception as error:
        about["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        run.say(f"{name} {precision}: {about['error']}")
    return about


def memory(run: Run) -> dict[str, Any]:
    """Compute 10,000 batches of changing size and commands; the device's memory must not grow."""
    if not run.on_gpu:
        return {"skipped": "needs a GPU", "ok": True}
    policy = in_process(of_architecture("command_attention"), run.device)
    policy.warm_up()
    prepared = [policy.prepare(row) for row in rows(32)]
    samples = []
    for index in range(10_000):
        policy.compute(prepared[: 1 + index % 32])
        if index % 1000 == 999:
            samples.append(torch.cuda.memory_allocated(run.device) / 2**20)
    run.say(f"allocated [MiB] every 1,000 batches: {[round(value, 1) for value in samples]}")
    reserved = torch.cuda.memory_reserved(run.device) / 2**20
    return {"allocated_mib": samples, "reserved_mib": reserved, "ok": samples[-1] <= samples[0] + 1}


def robots(run: Run) -> dict[str, Any]:
    """Find how many robots at 10 Hz one process serves with a p95 latency under 50 ms, decoding included."""
    found = {}
    plans: list[tuple[str, Precision]] = [("command_attention", "float32")]
    if run.on_gpu:
        plans.extend([("ViT-B/32", "bfloat16"), ("ViT-L/14", "bfloat16")])
    for name, precision in plans:
        if run.spent:
            found[name] = {"skipped": "time"}
            continue
        with torch.device(run.device if name in SIZES else "cpu"):
            source = of_size(name) if name in SIZES else of_architecture(name)
        policy = in_process(source, run.device, precision)
        policy.warm_up()
        found[name] = _robots_of(policy)
        run.say(f"{name} {precision}: {found[name]['robots']} robots at 10 Hz")
    return {"tier": "p95 under 50 ms, at most 1 % of steps missed", "policies": found, "ok": True}


def _robots_of(policy: Policy) -> dict[str, Any]:
    requests, tried, low, high = rows(64), [], 0, 8
    while high <= 4096:
        kept, p95_ms = _keeps(policy, requests, high)
        tried.append({"robots": high, "p95_ms": p95_ms, "kept": kept})
        if not kept:
            break
        low, high = high, high * 2
    while high - low > max(4, low // 16):
        middle = (low + high) // 2
        kept, p95_ms = _keeps(policy, requests, middle)
        tried.append({"robots": middle, "p95_ms": p95_ms, "kept": kept})
        low, high = (middle, high) if kept else (low, middle)
    return {"robots": low, "tried": tried}


def _keeps(policy: Policy, requests: list[Any], count: int, seconds: float = 2.5) -> tuple[bool, float]:
    """Play robots that send every 100 ms, in random phases; batches form as a worker forms them."""
    phases = np.sort(np.random.default_rng(count).uniform(0, 0.1, count))
    due: deque[float] = deque(np.add.outer(np.arange(int(seconds * 10)) * 0.1, phases).ravel().tolist())
    latencies, total, sent = [], len(due), 0
    began = time.perf_counter()
    while due:
        now = time.perf_counter() - began
        if due[0] > now:
            time.sleep(min(0.001, due[0] - now))
            continue
        batch = []
        while due and due[0] <= now and len(batch) < BUCKETS[-1]:
            batch.append(due.popleft())
        policy.infer([requests[(sent + index) % len(requests)] for index in range(len(batch))])
        sent += len(batch)
        done = time.perf_counter() - began
        latencies += [done - at for at in batch]
        if done - batch[0] > 1.0:  # hopelessly behind
            return False, 1000.0
    p95_ms = float(np.percentile(latencies, 95)) * 1000
    late = sum(latency > 0.1 for latency in latencies) / total
    return p95_ms < 50 and late <= 0.01, p95_ms


def failures(run: Run) -> dict[str, Any]:
    """Provoke what goes wrong on a GPU host, and see that neighbours keep their answers."""
    found = provoked(run.device, run.say)
    return {"cases": found, "ok": all(result["ok"] for result in found.values())}


def served(run: Run) -> dict[str, Any]:
    """Export the default checkpoint, load it as a worker does, and replay its example on the device."""
    with tempfile.TemporaryDirectory() as folder:
        options = Options(str(DEFAULT), Path(folder) / "vla.mar")
        export(options)
        unpacked = unpack(options.output, Path(folder) / "unpacked")
        policy = Policy.load(unpacked, run.device)
        policy.warm_up()
        run.say(f"the default archive answers its example on {policy.device}, graphs: {policy.graphs}")
        return {"device": str(policy.device), "graphs": policy.graphs, "ok": True}


def over_http(run: Run) -> dict[str, Any]:
    """Serve the default checkpoint by TorchServe, where it and Java are at hand."""
    if lacking := http.missing():
        run.say(f"skipped: {lacking}")
        return {"skipped": lacking, "ok": True}
    found = http.check(DEFAULT, run.device, seconds=4.0)
    run.say(f"over HTTP: {found}")
    return found


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "served": served,
    "speed": speed,
    "robots": robots,
    "http": over_http,
    "memory": memory,
    "failures": failures,
    "parity": parity,
    "tests": tests,
}

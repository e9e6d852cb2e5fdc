"""Latency and throughput by batch size, with CUDA graphs and without, beside what the device can do."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import msgspec
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.answers import answers
from bench.gpu.part import Findings, Run, said
from bench.policies import BUCKETS, in_process, of_architecture, of_size, robot_requests
from bench.timing import taken_s
from export.source import Source
from loadtest.document import Block, Table
from loadtest.figure import figure
from vla_runtime.spec import Precision


class Bucket(msgspec.Struct, frozen=True):
    """One batch size, from prepared tensors on the host to actions on the host."""

    batch: int
    # Median time with CUDA graphs and without [ms].
    ms: float
    eager_ms: float
    gflop: float
    # The larger of its operations and one reading of its weights at the device's ceilings [ms].
    floor_ms: float
    # Requests a second, decoding of 640 x 480 JPEG files included.
    infer_hz: float


class Measured(msgspec.Struct, frozen=True):
    """One policy in one precision."""

    policy: str
    precision: Precision
    tf32: bool
    parameters: int = 0
    graphs: bool = False
    buckets: list[Bucket] = []
    # Why there are no figures, where there are none.
    skipped: str = ""
    error: str = ""

    @property
    def name(self) -> str:
        """The policy and how it computes."""
        return f"{self.policy} {self.precision}{' (TF32)' if self.tf32 else ''}"


class Plan(NamedTuple):
    """A policy to measure, made on the device."""

    policy: str
    make: Callable[[], Source]
    # (precision, TF32)
    kinds: list[tuple[Precision, bool]]


ALL: list[tuple[Precision, bool]] = [("float32", False), ("float32", True), ("bfloat16", False)]
PLANS = (
    Plan("grounded", partial(of_architecture, "grounded"), ALL),
    Plan("ViT-B/32", partial(of_size, "ViT-B/32"), ALL),
    Plan("ViT-L/14", partial(of_size, "ViT-L/14"), ALL),
    Plan("3 billion", partial(of_size, "3 billion"), ALL[2:]),
)


def speed(run: Run) -> Findings:
    """Measure every plan, as far as the time goes."""
    run.need_gpu()
    limits = ceilings(run.device)
    run.say(", ".join(f"{name} {value:.0f}" for name, value in limits.items()))
    found: list[Measured] = []
    for name, make, kinds in PLANS:
        for precision, tf32 in kinds:
            empty = Measured(name, precision, tf32, skipped="time")
            found.append(empty if run.spent else _measured(run, empty, make, limits))
            run.say(f"{found[-1].name}: {_summary(found[-1])}")
            torch.cuda.empty_cache()
    (run.folder / "speed.svg").write_text(plot(found))
    figures = {"ceilings": limits, "policies": found}
    return Findings.of(list(_blocks(limits, found)), figures, ok=not any(one.error for one in found))


def _blocks(limits: dict[str, float], found: list[Measured]) -> Iterator[Block]:
    ceilings_text = ", ".join(f"{name} {value:.0f}" for name, value in limits.items())
    yield (
        f"Measured ceilings of the device: {ceilings_text}. A batch from prepared tensors on the host to "
        "actions on the host; the floor is the larger of its operations and one reading of its weights at "
        "these ceilings. The last column has decoding in it: JPEG files in, safe actions out."
    )
    head = (
        "policy",
        "batch",
        "with graph [ms]",
        "without [ms]",
        "rows/s",
        "share of the floor",
        "requests/s",
    )
    yield Table(head, [_row(policy, bucket) for policy in found for bucket in policy.buckets])
    yield from (f"{policy.name}: {_summary(policy)}" for policy in found if not policy.buckets)
    yield "![With CUDA graphs (lines) and without (dotted)](speed.svg)"


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
        found[f"{name}_tflops"] = 2 * 8192**3 / _device_s(partial(torch.matmul, a, b)) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gbs"] = 2 * source.numel() / _device_s(partial(target.copy_, source)) / 1e9
    return found


def _measured(run: Run, plan: Measured, make: Callable[[], Source], limits: dict[str, float]) -> Measured:
    kind = "tf32" if plan.tf32 else plan.precision
    bytes_each = 2 if plan.precision == "bfloat16" else 4
    try:
        with torch.device(run.device):
            source = make()
        weights = sum(parameter.numel() for parameter in source.model.parameters())
        with_graphs = in_process(source, run.device, plan.precision, tf32=plan.tf32)
        plain = in_process(source, run.device, plan.precision, tf32=plan.tf32, graphs=False)
        requests = robot_requests(max(BUCKETS))
        prepared = [with_graphs.prepare(row) for row in requests]
        buckets = []
        for size in BUCKETS:
            batch = prepared[:size]
            steps = (
                partial(with_graphs.compute, batch),
                partial(plain.compute, batch),
                partial(answers, with_graphs, requests[:size]),
            )
            ms, eager_ms, infer_ms = (
                1000 * median(taken_s(step, 0.2, least=10, warm_up=3)) for step in steps
            )
            with FlopCounterMode(display=False) as counter:
                plain.compute(batch)
            gflop = counter.get_total_flops() / 1e9
            reading_ms = weights * bytes_each / limits["copy_gbs"] / 1e6
            floor_ms = max(gflop / limits[f"{kind}_tflops"], reading_ms)
            buckets.append(Bucket(size, ms, eager_ms, gflop, floor_ms, 1000 * size / infer_ms))
    except Exception as error:  # one policy must not cost the others
        return msgspec.structs.replace(plan, skipped="", error=said(error))
    return msgspec.structs.replace(
        plan, skipped="", parameters=weights, graphs=with_graphs.graphs, buckets=buckets
    )


def _device_s(step: Callable[[], object], repeats: int = 10) -> float:
    """Return the median time of asynchronous work between two events of the device [s]."""
    for _ in range(3):
        step()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        step()
        end.record()
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) for begin, end in events) / 1000


def _row(policy: Measured, bucket: Bucket) -> tuple[str | float, ...]:
    share = f"{100 * bucket.floor_ms / bucket.ms:.0f} %"
    rows_hz = 1000 * bucket.batch / bucket.ms
    return policy.name, bucket.batch, bucket.ms, bucket.eager_ms, rows_hz, share, bucket.infer_hz


def _summary(policy: Measured) -> str:
    times = ", ".join(
        f"{bucket.batch}: {bucket.ms:.2f} ms ({bucket.eager_ms:.2f})" for bucket in policy.buckets
    )
    return times or policy.skipped or policy.error


@figure((9.6, 4.2))
def plot(axes: Any, policies: Sequence[Measured]) -> None:
    """Time of a batch by its size, with CUDA graphs and without, for each policy on a GPU."""
    axes.set(xscale="log", yscale="log", xlabel="observations in a batch", ylabel="time of a batch [ms]")
    for policy in policies:
        sizes = [bucket.batch for bucket in policy.buckets]
        (line,) = axes.plot(sizes, [bucket.ms for bucket in policy.buckets], "o-", label=policy.name)
        eager_ms = [bucket.eager_ms for bucket in policy.buckets]
        axes.plot(sizes, eager_ms, ":", color=line.get_color())
    axes.set_xticks(BUCKETS, [str(size) for size in BUCKETS])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

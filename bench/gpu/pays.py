"""What pays on a GPU: JPEG files decoded there, channels-last weights, and each export format."""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import msgspec
import torch
from simplejpeg import decode_jpeg

from bench import bodies, formats
from bench.gpu.part import Findings, Run
from bench.policies import in_process, of_architecture, robot_requests
from bench.timing import taken_s
from loadtest.document import Block, Table

PICTURES = (1, 8, 32)
# Policies of many convolutions.
CONVOLUTIONAL = ("grounded", "efficient", "early_fusion")
# Threads that decode on the CPU, as many as a worker has at most.
THREADS = 8


class Row(msgspec.Struct, frozen=True):
    """What is compared, and the median time by how many pictures or observations there are [ms]."""

    what: str
    ms: list[float]


def pays(run: Run) -> Findings:
    """Measure each in turns with what is done today."""
    run.need_gpu()
    blocks: list[Block] = []
    figures: dict[str, list[Row]] = {}
    for title, measure in (
        ("JPEG files of 640 x 480 to pixels", decoding),
        ("Weights in memory as channels come (default) or last, float32, with graphs", channels_last),
        ("Formats of one policy, float32", of_formats),
    ):
        if run.spent:
            break
        rows = figures[title] = measure(run.device)
        run.say(f"{title}: " + "; ".join(f"{row.what} {[round(ms, 2) for ms in row.ms]}" for row in rows))
        head = (title, *(f"{count} [ms]" for count in PICTURES))
        blocks.append(Table(head, [(row.what, *row.ms) for row in rows]))
    return Findings.of(blocks, figures, ok=True)


def decoding(device: str) -> list[Row]:
    """Decode on the CPU by one thread and by several, at the reduced scale too, and on the GPU by nvJPEG."""
    files = bodies.pictures(max(PICTURES))
    threads = min(THREADS, len(os.sched_getaffinity(0)))
    pool = ThreadPoolExecutor(threads)
    reduced = partial(decode_jpeg, min_height=96, min_width=96, min_factor=1)
    ways: dict[str, Callable[[int], object]] = {
        "CPU, one thread": lambda count: [decode_jpeg(file) for file in files[:count]],
        f"CPU, {threads} threads": lambda count: list(pool.map(decode_jpeg, files[:count])),
        f"CPU, {threads} threads, reduced to 96 pixels": lambda count: list(pool.map(reduced, files[:count])),
    }
    if importlib.util.find_spec("torchvision"):
        on_gpu = importlib.import_module("torchvision.io").decode_jpeg
        tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]

        def by_gpu(count: int) -> None:
            on_gpu(tensors[:count], device=device)
            torch.cuda.synchronize()

        ways["GPU (nvJPEG of torchvision), from files in memory to pixels there"] = by_gpu
    with pool:
        return [
            Row(what, _times_ms([partial(way, count) for count in PICTURES])) for what, way in ways.items()
        ]


def channels_last(device: str) -> list[Row]:
    """Compute policies of convolutions with either layout of their weights."""
    rows = []
    for name in CONVOLUTIONAL:
        for what, layout in (("", torch.contiguous_format), (", channels last", torch.channels_last)):
            source = of_architecture(name)
            for parameter in source.model.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=layout)
            policy = in_process(source, device)
            policy.warm_up()
            prepared = [policy.prepare(row) for row in robot_requests(max(PICTURES))]
            steps = [partial(policy.compute, prepared[:count]) for count in PICTURES]
            rows.append(Row(f"{name}{what}", _times_ms(steps)))
    return rows


def of_formats(_device: str) -> list[Row]:
    """Compute archives of the default architecture in each format that runs on a GPU, in turns."""
    options = formats.Options(formats=("torchscript", "pt2", "eager", "eager compiled"))
    return [Row(one.format, list(one.batch_ms.values())) for one in formats.of_policy("grounded", options)]


def _times_ms(steps: Sequence[Callable[[], object]]) -> list[float]:
    return [1000 * median(taken_s(step, 0.3, least=10, warm_up=3)) for step in steps]

"""A GPU host's traps, shown without a GPU: which device, how many threads, graphs that do not compute."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from archive.read import unpack
from export.export import Options, export
from vla_runtime import device, graphs
from vla_runtime.artifact import Artifact
from vla_runtime.errors import SpecError
from vla_runtime.graphs import Graphs, check_replay
from vla_runtime.policy import Policy
from vla_runtime.spec import ArtifactSpec, Platform, Precision


def test_a_worker_without_a_gpu_serves_on_the_cpu() -> None:
    assert (device.of_worker(None), device.of_worker(-1)) == ("cpu", "cpu")


@pytest.mark.parametrize(("found", "gpu"), [(0, 0), (1, 1)])
def test_a_promised_gpu_that_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: int, gpu: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)

    with pytest.raises(
        SpecError, match=rf"^GPU {gpu} was promised to this worker, and torch .* can use {found}"
    ):
        device.of_worker(gpu)


def test_the_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs and libraries that name no device use the current one: GPU 0, whatever was promised."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)

    assert device.prepare("cuda:1") == torch.device("cuda", 1)
    assert device.prepare("cuda") == torch.device("cuda", 2)
    assert current == [1, 2]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)


@pytest.mark.parametrize(
    ("text", "workers", "found"),
    [
        ("150000 100000", 1, 1),
        ("max 100000", 1, 16),
        ("max 100000", 3, 5),
        ("800000 100000", 2, 4),
        ("20000 100000", 1, 1),
        ("200000 100000", 4, 1),
        ("0 100000", 1, 16),
    ],
)
def test_threads_heed_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, workers: int, found: int
) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    monkeypatch.setattr(device, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16 + pid)))

    assert device.threads(workers) == found


ONE = np.zeros((2, 4, 2), np.float32)
OTHER = ONE + 0.5


def test_a_graph_that_computes_passes() -> None:
    check_replay([(ONE, ONE), (OTHER + 1e-6, OTHER)], 2)
    large = 1000 * (1 + OTHER)
    check_replay([(ONE, ONE), (large + 500 * graphs.REPLAY_TOLERANCE, large)], 2)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(ONE, ONE), (ONE, OTHER)], r"batches of 2 answers otherwise than the policy itself, by 0\.5$"),
        ([(ONE, ONE), (ONE, ONE + 0.01)], r"batches of 2 gives one answer to different inputs$"),
        ([(ONE, ONE), (OTHER, OTHER), (ONE, ONE + 0.01)], r"gives one answer to different inputs$"),
        ([(ONE * np.nan, ONE), (OTHER, OTHER)], r"answers otherwise than the policy itself, by nan$"),
    ],
)
def test_a_graph_that_answers_what_was_in_memory_is_refused(
    pairs: list[tuple[np.ndarray, np.ndarray]], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check_replay(pairs, 2)


def test_a_stale_graph_stops_the_worker(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty graph, as one captured on another device is: outputs stay as the capture left them."""

    def stale(self: Graphs, forward: graphs.Forward, batch: int) -> graphs.Forward:
        self.enabled = True
        outputs = forward()

        def replay() -> dict[str, torch.Tensor]:
            return outputs

        return replay

    monkeypatch.setattr(Graphs, "capture", stale)
    policy = Policy.load(tiny_folder, replay=False)

    with pytest.raises(SpecError, match=r"^the CUDA graph of batches of 1 "):
        policy.warm_up()


class Refusing:
    """A graph whose capture fails as CUDA's does."""

    def __init__(self) -> None:
        self.ended = 0

    def capture_begin(self, **_: object) -> None:
        pass

    def capture_end(self) -> None:
        self.ended += 1


def test_a_refused_capture_ends_and_the_policy_serves_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's errors while capturing are `torch.AcceleratorError`, which elsewhere means a lost device."""
    graph = Refusing()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    failing = Graphs(torch.device("cpu"))
    failing.enabled = True
    calls = 0

    def forward() -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == graphs.WARM_UPS + 1:
            raise torch.AcceleratorError("operation not permitted when stream is capturing")
        return {"actions": torch.ones(1)}

    served = failing.capture(forward, 4)

    assert (graph.ended, failing.enabled) == (1, False)
    assert served is forward


def test_a_device_that_is_lost_while_capturing_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Refusing)
    waits = iter([None, torch.AcceleratorError("device-side assert")])

    def synchronize(_device: object) -> None:
        if error := next(waits):
            raise error

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    lost = Graphs(torch.device("cpu"))
    lost.enabled = True
    calls = iter([{"actions": torch.ones(1)}] * graphs.WARM_UPS)

    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        lost.capture(lambda: next(calls, None) or _raise(), 4)


def test_all_buckets_graphs_share_one_pool_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = list[object]()

    class Capturing(Refusing):
        def capture_begin(self, **options: object) -> None:
            pools.append(options["pool"])

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Capturing)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    captured = Graphs(torch.device("cuda", 0))

    for bucket in (1, 2, 4):
        captured.capture(lambda: {"actions": torch.ones(1)}, bucket)

    assert len(pools) == 3
    assert len(set(pools)) == 1


def _raise() -> dict[str, torch.Tensor]:
    raise torch.AcceleratorError("capture failed")


def test_a_compiled_package_runs_single_threaded_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its locks are asked for while a graph is captured, which fails from the second bucket on."""
    from torch._inductor.package import package  # noqa: PLC0415

    from vla_runtime import module  # noqa: PLC0415

    asked: list[dict[str, object]] = []
    monkeypatch.setattr(
        package, "load_package", lambda *_, **options: asked.append(options) or (lambda: None)
    )
    here = Platform(device="cuda", torch="2.13.0", capability="sm_90")
    monkeypatch.setattr(module, "platform_of", lambda _device: here)
    (tmp_path / "policy.pt2").write_bytes(b"")
    artifact = ArtifactSpec(
        file="policy.pt2",
        command=("words",),
        inputs=("image.front", "command.words"),
        buckets=(1,),
        outputs=("actions",),
        format="pt2",
        platform=here,
    )

    module.load_module(tmp_path, artifact, "cuda:1")

    assert asked == [{"run_single_threaded": True, "device_index": 1}] * 2


OTHER_PROCESSOR = """
import sys
from pathlib import Path
from vla_runtime.policy import Policy
Policy.load(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_archive_loads_on_a_processor_with_fewer_instructions(
    precision: Precision, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "vla.mar"
    export(Options(str(tiny_checkpoint), archive, buckets=(1, 2), precision=precision))
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESSOR, str(unpack(archive, tmp_path / "unpacked"))],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_artifacts_say_whether_they_replay(tiny_folder: Path) -> None:
    policy = Policy.load(tiny_folder, replay=False)

    assert policy.graphs is (torch.cuda.is_available() and policy.device.type == "cuda")
    assert isinstance(policy, Policy)
    assert Artifact.load(tiny_folder, policy.spec).graphs is False

"""A batch's memory: right places, nothing left of the batch before; graphs where there is a GPU."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_runtime.graphs import Graphs
from vla_runtime.policy import Answer, Policy
from vla_runtime.staging import ALIGNMENT, Inputs, Staging

NO_GPU = "needs a GPU: torch.cuda.is_available() is False here"
CPU = torch.device("cpu")


def inputs(seed: int, state: int = 3, noise: tuple[int, int] = (2, 5)) -> Inputs:
    random = np.random.default_rng(seed)
    tensors = {
        "image.front": random.integers(0, 256, (3, 5, 5), np.uint8),
        "image.wrist": random.integers(0, 256, (2, 3, 7, 4), np.uint8),
        "state": random.random(state, np.float32),
        "noise": random.random(noise, np.float32),
    }
    return Inputs(tensors, np.arange(4), np.ones(4, np.int64), tensors["state"], np.zeros(0), np.inf)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason=NO_GPU))])  # fmt: skip
def test_every_fill_replaces_the_batch(device: str) -> None:
    staging = Staging(inputs(0), 2, torch.device(device))
    for seeds in ((0, 1), (2, 3)):
        rows = [inputs(seed) for seed in seeds]
        staging.fill(rows)
        for name, tensor in staging.tensors.items():
            assert tensor.device.type == device
            np.testing.assert_array_equal(tensor.cpu(), np.stack([row.tensors[name] for row in rows]))
    assert staging.tensors["state"].data_ptr() % ALIGNMENT == 0


def test_the_memory_holds_the_batch_and_little_more() -> None:
    row = inputs(0)
    staging = Staging(row, 7, CPU)

    needed = 7 * sum(array.nbytes for array in row.tensors.values())
    reserved = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in staging.tensors.values()
    }
    assert len(reserved) == 1
    assert needed <= sum(reserved.values()) < needed + ALIGNMENT * len(row.tensors)
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in staging.tensors.values())
    assert row.prefix.shape == (0, 0)


def test_a_policy_without_state_and_noise_has_empty_tensors() -> None:
    staging = Staging(inputs(0, state=0, noise=(0, 0)), 2, CPU)
    staging.fill([inputs(seed, state=0, noise=(0, 0)) for seed in (4, 5)])

    assert (staging.tensors["state"].shape, staging.tensors["noise"].shape) == ((2, 0), (2, 0, 0))
    np.testing.assert_array_equal(staging.tensors["image.front"][1], inputs(5).tensors["image.front"])


def test_an_answer_outlives_the_next_batch(tiny_folder: Path) -> None:
    policy = Policy.load(tiny_folder)
    row = policy.example_row(tiny_folder)
    first = policy.infer([row])[0]
    assert isinstance(first, Answer)
    kept = first.chunk.actions.copy()

    policy.infer([{**row, "command": "lift the blue block", "state": [0.4, 0.0]}])

    np.testing.assert_array_equal(first.chunk.actions, kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_a_graph_computes_what_the_memory_holds() -> None:
    device = torch.device("cuda")
    memory = torch.ones(4, device=device)
    graphs = Graphs(device)
    with graphs.stream():
        forward = graphs.capture(lambda: {"doubled": memory * 2}, 4)
        memory.fill_(3)
        doubled = forward()["doubled"].tolist()

    assert graphs.enabled
    assert doubled == [6] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_a_forward_pass_that_waits_for_the_device_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda")
    memory = torch.ones(4, device=device)
    graphs = Graphs(device)
    with caplog.at_level(logging.WARNING), graphs.stream():
        forward = graphs.capture(lambda: {"sum": memory * memory.sum().item()}, 4)
        memory.fill_(2)
        total = forward()["sum"].tolist()

    assert not graphs.enabled
    assert total == [16] * 4
    assert caplog.messages[0].startswith("no CUDA graph for batches of 4, which will be slower: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_the_policy_on_a_gpu_answers_as_on_the_cpu(tiny_folder: Path) -> None:
    on_cpu, on_gpu = Policy.load(tiny_folder), Policy.load(tiny_folder, "cuda")
    row = on_cpu.example_row(tiny_folder)
    rows = [{**row, "state": [0.1 * index, 0.5]} for index in range(5)]
    for _ in range(2):
        pairs = zip(on_cpu.infer(rows), on_gpu.infer(rows), strict=True)
        for one, other in pairs:
            assert isinstance(one, Answer)
            assert isinstance(other, Answer)
            np.testing.assert_allclose(one.chunk.actions, other.chunk.actions, atol=1e-4)

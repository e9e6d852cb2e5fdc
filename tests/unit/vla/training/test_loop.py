"""The loop's options: parts of a batch, lower precision, averaged weights, curves, several processes."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.optim import AdamW

from vla import checkpoint
from vla.models import ARCHITECTURES
from vla.training.imitation import train
from vla.training.learner import Learner
from vla.training.ranks import Ranks
from vla.training.schedule import one_cycle
from vla.training.settings import Settings
from vla.training.setup import batches_for, model_for

# Whose weights do not depend on the parts that a batch is computed in. Others have batch normalisation
# (efficient, memory_efficient, realtime, the ResNet of early_fusion's tiny), means over what a part happens
# to have (grounded), or draw what is random for each part (diffusion, flow, rt2).
EXACT = (
    "command_attention",
    "late_fusion",
    "dense_fusion",
    "clip",
    "vl_transformer",
    "cross_modal",
    "unified",
    "hierarchical",
)
# What every `make test` takes; the others are taken by `make test-all`.
USUAL = ("command_attention",)


def each(architectures):
    return [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in architectures]


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory):
    return Settings(
        architecture="command_attention",
        preset="tiny",
        data=data,
        out=tmp_path_factory.mktemp("loop") / "run",
        steps=4,
        batch=8,
        commands=2,
        validate_every=2,
        validation_share=0.3,
        sentences=5,
        threads=1,
    )


def begun(settings):
    """Batches, and a model with the weights that a run begins with."""
    torch.manual_seed(settings.seed)
    batches = batches_for(settings)
    return batches, model_for(settings, batches.config)


def learned(settings, steps=2):
    """What has learned for so many steps, and the loss of each."""
    batches, model = begun(settings)
    learner, losses = Learner(settings, model, Ranks()), []
    for step in range(steps):
        batch = batches.train(step, settings.batch, settings.commands)
        losses.append(learner.step(batch, step, 1e-3, lambda part: part))
    return learner, losses


def distance(weights, others):
    """Return the largest difference between two sets of weights."""
    assert weights.keys() == others.keys()
    return max(float((weights[name].double() - others[name].double()).abs().max()) for name in weights)


def test_without_options_a_run_is_the_plain_loop_bit_for_bit(settings, tmp_path):
    settings = replace(settings, out=tmp_path)
    train(settings)
    batches, model = begun(settings)
    optimiser = AdamW(model.parameters(), lr=0.0, weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        torch.manual_seed(step)
        optimiser.param_groups[0]["lr"] = one_cycle(step / settings.steps) * settings.learning_rate
        optimiser.zero_grad()
        batch = batches.train(step, settings.batch, settings.commands)
        torch.stack(list(model.loss(batch).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimiser.step()
    assert distance(load_file(tmp_path / checkpoint.WEIGHTS), model.state_dict()) == 0


@pytest.mark.parametrize("architecture", each(EXACT))
def test_parts_of_a_batch_give_the_gradient_of_the_whole_where_a_loss_is_a_mean(architecture, settings):
    settings = replace(settings, architecture=architecture)
    whole, losses = learned(settings, 1)
    parts, again = learned(replace(settings, accumulate=4), 1)
    gradients = [
        {name: each.grad for name, each in learner.model.named_parameters() if each.grad is not None}
        for learner in (whole, parts)
    ]
    assert distance(*gradients) < 2e-6
    assert again[0][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[0][0] == pytest.approx(sum(losses[0][1].values()), rel=1e-5)


@pytest.mark.parametrize("architecture", each(ARCHITECTURES))
def test_lower_precision_learns_nearly_the_same(architecture, settings):
    settings = replace(settings, architecture=architecture)
    _, plain = learned(settings, 1)
    for precision, tolerance in (("bf16", 0.05), ("fp16", 0.01)):
        learner, losses = learned(replace(settings, precision=precision), 1)
        assert 0 < abs(losses[0][0] / plain[0][0] - 1) < tolerance
        assert all(parameter.dtype == torch.float32 for parameter in learner.trained)


def test_gradients_that_overflow_are_left_out_and_lower_the_scale(settings):
    batches, model = begun(settings)
    learner = Learner(replace(settings, precision="fp16"), model, Ranks())
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**40})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner.step(batches.train(0, 8, 2), 0, 1e-3, lambda part: part)
    assert distance(before, model.state_dict()) == 0
    assert learner.scaler.get_scale() == 2.0**39


def test_averaged_weights_are_the_moving_average_and_what_is_written(settings, tmp_path):
    settings = replace(settings, out=tmp_path, ema=0.2)
    batches, model = begun(settings)
    learner = Learner(replace(settings, ema=0.0), model, Ranks())
    expected: dict[str, torch.Tensor] = {}
    for step in range(settings.steps):
        rate = one_cycle(step / settings.steps) * settings.learning_rate
        learner.step(batches.train(step, 8, 2), step, rate, lambda part: part)
        kept = min(0.2, (1 + step) / (10 + step)) if expected else 0.0
        expected = {
            name: torch.lerp(value, expected[name] if expected else value, kept)
            for name, value in model.state_dict().items()
        }
    train(settings)
    written = load_file(tmp_path / checkpoint.WEIGHTS)
    assert distance(written, expected) < 1e-6
    assert distance(written, model.state_dict()) > 1e-5


def test_a_run_with_every_option_goes_on_to_the_same_weights(settings, tmp_path):
    options = {
        "accumulate": 2,
        "precision": "fp16",
        "ema": 0.9,
        "tensorboard": True,
        "architecture": "unified",
    }
    whole, two = (replace(settings, **options, out=tmp_path / name) for name in ("whole", "two"))
    train(whole)
    train(two, stop_after=2)
    train(replace(two, resume=True))
    state, again = (load_file(each.out / "progress.safetensors") for each in (whole, two))
    assert distance(state, again) == 0
    assert state["average.n_averaged"] == 4
    assert state["scaler.scale"] > 1
    assert distance(*(load_file(each.out / checkpoint.WEIGHTS) for each in (whole, two))) == 0
    assert scalars(whole.out) == scalars(two.out)


def scalars(folder):
    """Return what TensorBoard itself reads in a run's folder: steps and values of each tag."""
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_curves_for_tensorboard_are_those_of_the_run(settings, tmp_path):
    train(replace(settings, out=tmp_path, tensorboard=True, architecture="unified"))
    points = json.loads((tmp_path / "progress.json").read_text())["points"]
    curves = scalars(tmp_path)
    assert set(curves) == {
        *("learning_rate", "loss", "loss/actions", "loss/scale"),
        *(f"validation_error/{name}" for name in ("delta_x", "delta_y", "delta_z", "gripper")),
    }
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4]
    assert sum(value for _, value in curves["loss"][2:]) / 2 == pytest.approx(points[1]["loss"])
    expected = [(point["step"], pytest.approx(point["error"][3])) for point in points]
    assert curves["validation_error/gripper"] == expected


def launched(settings, processes):
    """Train by the command that users run, by `torchrun` where there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *settings.command_line.split()[1:]]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    return run


def test_two_processes_give_the_weights_of_one(settings, tmp_path):
    settings = replace(settings, ema=0.5, learning_rate=1e-3)
    two = launched(replace(settings, out=tmp_path / "two"), 2)
    train(replace(settings, out=tmp_path / "one"))
    written = [load_file(tmp_path / name / checkpoint.WEIGHTS) for name in ("one", "two")]
    assert distance(*written) < 1e-5
    one, other = (
        json.loads((tmp_path / name / "progress.json").read_text())["points"] for name in ("one", "two")
    )
    for point, twin in zip(one, other, strict=True):
        assert twin["loss"] == pytest.approx(point["loss"], rel=1e-5)
        assert twin["error"] == pytest.approx(point["error"], rel=1e-4)
    assert two.stdout.count("parameters") == 1
    assert two.stderr.count("| 0/4 [") == 1
    assert json.loads((tmp_path / "two" / checkpoint.PROVENANCE).read_text())["processes"] == 2


def test_a_batch_that_can_not_be_divided_is_refused(settings):
    _, model = begun(settings)
    with pytest.raises(ValueError, match=r"^batch must be a multiple of 6, its parts \(2 processes, acc"):
        Learner(replace(settings, accumulate=3), model, Ranks(0, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"ema": 1.0}, "ema must be from 0 to below 1, got 1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)

"""Training on a handful of real frames: it learns, resumes, and refuses what is incomplete."""

import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from safetensors.torch import load_file

from vla import checkpoint
from vla.models import ARCHITECTURES
from vla.tabletop.demonstrations import Demonstrations
from vla.training import loop
from vla.training.__main__ import main
from vla.training.batches import Batches
from vla.training.distillation import Teacher
from vla.training.imitation import train
from vla.training.schedule import one_cycle
from vla.training.settings import Settings
from vla.training.setup import describe
from vla_runtime.errors import SpecError

# What every `make test` trains, the others by `make test-all`: one that is plain, one with stages of its own,
# one that draws noise, one that learns tokens, one with batch normalisation.
USUAL = ("command_attention", "grounded", "flow", "rt2", "memory_efficient")


@pytest.fixture(scope="module")
def settings(data, tmp_path_factory):
    return Settings(
        architecture="command_attention",
        preset="tiny",
        data=data,
        out=tmp_path_factory.mktemp("run"),
        steps=60,
        batch=8,
        commands=4,
        validate_every=20,
        validation_share=0.3,
        sentences=60,
        threads=1,
        seed=3,
    )


@pytest.fixture(scope="module")
def run(settings):
    train(settings)
    return settings.out


def weights(folder):
    return load_file(folder / checkpoint.WEIGHTS)


def points(folder):
    return json.loads((folder / "progress.json").read_text())["points"]


def batches(settings, **changes):
    dataset = Demonstrations.load(settings.data)
    values = {"seed": 0, "validation_share": 0.3, "counterfactual": 0.8} | changes
    return Batches(dataset, describe(settings, dataset), **values)


def test_loss_falls(run):
    losses = [point["loss"] for point in points(run)]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]


def test_resumed_run_ends_with_the_same_weights(settings, run, tmp_path):
    interrupted = replace(settings, out=tmp_path)
    train(interrupted, stop_after=40)
    assert not (tmp_path / checkpoint.WEIGHTS).exists()
    train(replace(interrupted, resume=True))
    expected = weights(run)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())
    assert points(tmp_path) == points(run)


def test_resuming_with_other_settings_is_refused(settings, run):
    changed = replace(settings, resume=True, batch=16, learning_rate=1.0)
    with pytest.raises(SpecError, match="was run with another batch, learning_rate: it can't be resumed"):
        train(changed)


def test_resuming_nothing_is_refused(settings, tmp_path):
    with pytest.raises(SpecError, match=r"progress\.json is missing in"):
        train(replace(settings, out=tmp_path, resume=True))


@pytest.mark.parametrize(
    "architecture", [pytest.param(n, marks=() if n in USUAL else pytest.mark.slow) for n in ARCHITECTURES]
)
def test_checkpoint_round_trip(architecture, settings, tmp_path):
    settings = replace(
        settings, architecture=architecture, out=tmp_path, steps=2, half=True, validate_every=2
    )
    train(settings)
    config, model = checkpoint.load(tmp_path)
    assert not model.training
    assert config.architecture == architecture
    assert config.training["steps"] == 2
    stored = weights(tmp_path)
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    for name, value in model.state_dict().items():
        assert value.dtype == (torch.float32 if stored[name].is_floating_point() else torch.int64)
        assert torch.equal(value, stored[name].to(value.dtype))
    checkpoint.save(
        tmp_path / "again", config, model, batches(settings).example(), {"note": "copy"}, half=False
    )
    again, twin = checkpoint.load(tmp_path / "again")
    assert again == config
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_student_learns_from_its_teacher(settings, run, tmp_path):
    alone = replace(settings, architecture="efficient", out=tmp_path / "alone", steps=2, validate_every=2)
    taught = replace(alone, out=tmp_path / "taught", teacher=run)
    train(alone)
    train(taught)
    learned = weights(tmp_path / "taught")
    assert any(not torch.equal(value, learned[name]) for name, value in weights(tmp_path / "alone").items())
    teacher: Any
    config, teacher = checkpoint.load(run)
    batch = batches(settings).train(0, 3, 2)
    mixed = Teacher(run, config, 0.25, "cpu").mix(batch)
    with torch.inference_mode():
        frames = [part.repeat_interleave(2, 0) for part in (batch.images, batch.state)]
        command = teacher.encode_command(batch.input_ids, batch.attention_mask)
        answer = teacher.act(frames[0], *command, frames[1], torch.zeros(6, 0, 0))["actions"]
    torch.testing.assert_close(mixed.actions, 0.75 * batch.actions + 0.25 * answer)
    assert mixed._replace(actions=batch.actions) == batch


def test_a_teacher_of_other_demonstrations_is_taken_where_its_numbers_mean_the_same(run):
    config: Any
    config, _ = checkpoint.load(run)
    statistics = msgspec.structs.replace(config.action.statistics, mean=(0.5,) * 4, q01=(-0.5,) * 4)
    student = msgspec.structs.replace(
        config, action=msgspec.structs.replace(config.action, statistics=statistics)
    )
    assert student != config
    Teacher(run, student, 0.5, "cpu")
    statistics = msgspec.structs.replace(statistics, low=(-2.0,) * 4, high=(2.0,) * 4)
    for changed in ({"statistics": statistics}, {"horizon": 3}, {"control_hz": 5.0}):
        other = msgspec.structs.replace(config, action=msgspec.structs.replace(config.action, **changed))
        with pytest.raises(SpecError, match="has another action than the student"):
            Teacher(run, other, 0.5, "cpu")


def test_teacher_that_acts_otherwise_is_refused(settings, run, tmp_path):
    other = replace(settings, out=tmp_path, teacher=run, normalisation="mean_std")
    with pytest.raises(SpecError, match="has another state than the student: train both alike"):
        train(other)


def test_checkpoint_says_where_it_comes_from(run, settings):
    about = json.loads((run / checkpoint.PROVENANCE).read_text())
    assert about["seed"] == 3
    assert about["steps"] == 60
    assert len(about["dataset_sha256"]) == 64
    names = ["delta_x [m]", "delta_y [m]", "delta_z [m]", "gripper [1]"]
    assert list(about["validation_error"]) == names
    assert all(0 < value < 1 for value in about["validation_error"].values())
    assert (run / "curve.png").is_file()


def test_example_is_a_held_out_frame_in_physical_units(run, settings):
    example = msgspec.json.decode((run / checkpoint.EXAMPLE).read_bytes(), type=checkpoint.Example)
    dataset = Demonstrations.load(settings.data)
    pixels = np.asarray(Image.open(run / example.images["front"]))
    (row,) = np.flatnonzero((dataset.images == pixels).all((1, 2, 3)))
    np.testing.assert_array_equal(np.array(example.state, np.float32), dataset.state[row])
    drawn = batches(settings, seed=settings.seed)
    assert row in drawn.frames[1]
    assert example.command == drawn.example().command


def test_minutes_are_measured_with_the_teacher_in_them(settings, run, tmp_path):
    timed = replace(
        settings,
        out=tmp_path,
        minutes=0.05,
        validate_every=5,
        teacher=run,
        excluded_goals=("lift blue",),
        half=True,
    )
    config = train(timed)
    about = json.loads((tmp_path / checkpoint.PROVENANCE).read_text())
    assert 3 <= about["wall_s"] < 9
    assert config.training["minutes"] == 0.05
    assert about["steps"] == points(tmp_path)[-1]["step"] > 1
    rates = [point["learning_rate"] for point in points(tmp_path)]
    assert rates[-1] < max(rates) / 2
    words = shlex.split(about["command_line"])
    assert words[:3] == ["python", "-m", "vla.training"]
    assert tyro.cli(Settings, args=words[3:]) == timed


def test_minutes_of_the_processor_do_not_count_what_others_take(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(loop.CLOCKS, "wall", None)
    train(replace(settings, out=tmp_path, minutes=0.02, clock="process", validate_every=1000))
    about = json.loads((tmp_path / checkpoint.PROVENANCE).read_text())
    assert 1.2 <= about["wall_s"] < 4
    assert about["step_cpu_s"] * about["steps"] >= 1.1


def test_a_resumed_run_takes_the_rest_of_its_minutes(settings, tmp_path):
    timed = replace(settings, out=tmp_path, minutes=0.05, validate_every=2)
    train(timed, stop_after=2)
    assert 0 < json.loads((tmp_path / "progress.json").read_text())["wall_s"] < 3
    train(replace(timed, resume=True))
    about = json.loads((tmp_path / checkpoint.PROVENANCE).read_text())
    assert 3 <= about["wall_s"] < 9
    assert about["steps"] > 2


@pytest.mark.parametrize("part", ["state", "action"])
def test_missing_statistics_are_refused(run, tmp_path, part):
    shutil.copytree(run, tmp_path / "copy")
    path = tmp_path / "copy" / checkpoint.CONFIG
    config = json.loads(path.read_text())
    del config[part]["statistics"]
    path.write_text(json.dumps(config))
    with pytest.raises(SpecError) as refused:
        checkpoint.load(tmp_path / "copy")
    assert str(refused.value) == f"config.json: Object missing required field `statistics` - at `$.{part}`"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (checkpoint.WEIGHTS, None, "model.safetensors is missing in "),
        (checkpoint.CONFIG, None, "config.json is missing in "),
        (checkpoint.WEIGHTS, b"no weights", "model.safetensors does not fit the model of config.json"),
    ],
)
def test_damaged_checkpoint_is_refused(run, tmp_path, file, content, message):
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / file).unlink()
    if content is not None:
        (tmp_path / "copy" / file).write_bytes(content)
    with pytest.raises(SpecError, match=message):
        checkpoint.load(tmp_path / "copy")


def test_weights_of_another_model_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    path = tmp_path / "copy" / checkpoint.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model": config["model"] | {"channels": 16}}))
    with pytest.raises(SpecError, match="does not fit the model"):
        checkpoint.load(tmp_path / "copy")
    path.write_text(json.dumps(config | {"model": config["model"] | {"chanels": 16}}))
    with pytest.raises(SpecError, match="unexpected keyword argument 'chanels'"):
        checkpoint.load(tmp_path / "copy")


def test_learning_rate_rises_and_falls_to_zero():
    rates = [one_cycle(step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == rates[30] == 1.0
    assert rates[100] == pytest.approx(0.0, abs=1e-9)
    assert all(math.isfinite(rate) for rate in rates)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"minutes": -1.0}, "minutes must be 0 or more, got -1.0"),
        ({"counterfactual": 1.5}, "counterfactual must be from 0 to 1, got 1.5"),
        ({"teacher_share": -0.5}, "teacher_share must be from 0 to 1, got -0.5"),
        ({"validation_share": 1.0}, "validation_share must be between 0 and 1, got 1.0"),
        ({"max_delay": 4}, "max_delay is for the architecture flow, not grounded"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def run_command(*arguments, **options):
    command = [sys.executable, "-m", "vla.training", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_run_is_not_overwritten_unless_told(data, run, monkeypatch):
    told = ["--data", str(data), "--out", str(run), "--preset", "tiny", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["python -m vla.training", *told])
    with pytest.raises(SystemExit) as refused:
        main()
    assert str(refused.value).startswith(
        f"error: {run} holds a run already (progress.json, model.safetensors): go on with it"
    )


def test_an_interrupted_run_says_how_to_go_on(data, tmp_path):
    arguments = ("--data", data, "--out", tmp_path / "r", "--preset", "tiny", "--steps", 100000, "--batch", 4)
    # A shell's background jobs ignore Ctrl-C, and so would what they start.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = run_command(*arguments, "--sentences", 5, "--validate-every", 20, preexec_fn=heed)
    for _ in range(600):
        if process.poll() is not None or (tmp_path / "r").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert f"interrupted; go on with: python -m vla.training --data {data}" in said
    assert said.rstrip().endswith("--resume")

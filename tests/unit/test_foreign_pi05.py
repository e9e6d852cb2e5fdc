"""LeRobot's pi0.5: the state in its prompt, its adaptive norms, and what is refused in one line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.folders import TOKENIZER, edit_json, edit_weights, read_pi, rebuilt, recorded
from golden.in_process import refused_in_one_line
from safetensors.torch import load_file, save_file

from export.foreign import paligemma
from export.foreign.pi0.model import Config, Pi05, build
from export.source import Source
from vla_runtime.preprocessing import state_bins

EXPERT = "model.paligemma_with_expert.gemma_expert.model."


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rebuilt("pi05", tmp_path_factory.mktemp("sound"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "pi05"))


def chunk(source: Source, state: np.ndarray) -> torch.Tensor:
    """Return a normalised chunk [1, T, A] for a state in physical units."""
    random, model = torch.Generator().manual_seed(0), source.model
    images = {
        camera.name: torch.rand(1, 3, camera.height, camera.width, generator=random)
        for camera in source.cameras
    }
    reader, noise = source.command_tokenizer(), torch.randn(1, *source.noise or (), generator=random)
    assert reader
    bins = state_bins(state, source.state, source.tokenizer)
    ids, mask = (torch.from_numpy(value)[None] for value in reader("open the drawer", bins))
    with torch.inference_mode():
        command = model.encode_command(ids, mask)  # pyright: ignore[reportCallIssue]
        return model.act(images, command, torch.zeros(1, 6), noise)["actions"]  # pyright: ignore[reportCallIssue]


def test_the_state_comes_in_by_the_prompt_alone(sound: Path) -> None:
    source = read_pi(sound)
    assert source.state
    assert source.tokenizer
    low, high = (np.array(values, np.float32) for values in (source.state.low, source.state.high))

    answers = [chunk(source, state) for state in (low, (low + high) / 2, high)]

    assert source.tokenizer.template == "Task: {command}, State: {state};\nAction: "
    assert (source.tokenizer.context_length, source.tokenizer.tidy) == (200, True)
    assert source.name == "pi05"
    assert source.state.normalisation == source.action.normalisation == "quantiles"  # pyright: ignore[reportAttributeAccessIssue]
    for answer in answers[1:]:
        assert (answer - answers[0]).abs().max() > 0.01


def test_an_eager_archive_builds_the_same_module(sound: Path) -> None:
    source = read_pi(sound)
    assert source.eager
    state = np.zeros(6, np.float32)

    built = build(**json.loads(json.dumps(source.eager.arguments))).eval()
    built.load_state_dict(source.model.state_dict())
    answer = chunk(source, state)
    object.__setattr__(source, "model", built)

    assert isinstance(built, Pi05)
    assert torch.equal(chunk(source, state), answer)
    assert source.eager.arguments == asdict(built.config)


def test_every_weight_of_full_size_has_its_place() -> None:
    recorded = json.loads((TOKENIZER.parent / "full_size_pi05.json").read_text())
    shapes = {key: tuple(shape) for key, shape in recorded.items()}
    tower = paligemma.tower(shapes, 224)
    sizes = (paligemma.language(shapes, "gemma_2b"), paligemma.expert(shapes, "gemma_300m"))
    with torch.device("meta"):
        model = Pi05(Config(tower, *sizes, paligemma.vocabulary(shapes), None, 32, 50, 10, 0.004, 4.0))
    table = paligemma.table(shapes, paligemma.OF_PI05)

    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    placed = {table.target(key): shape for key, shape in shapes.items() if not table.needless(key)}

    assert placed == wanted
    assert round(sum(value.numel() for value in model.parameters()) / 1e9, 2) == 3.35


def config(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda found: found.update(fields))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, change)


def steps(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    """Return what changes the steps of the preprocessor."""
    return lambda folder: edit_json(folder / "policy_preprocessor.json", lambda found: change(found["steps"]))


def without_prompt(found: list[dict[str, Any]]) -> None:
    found[:] = [step for step in found if "pi05" not in step["registry_name"]]


def normalised_last(found: list[dict[str, Any]]) -> None:
    (place,) = (i for i, step in enumerate(found) if step["registry_name"] == "normalizer_processor")
    found.append(found.pop(place))


def new_line(found: list[dict[str, Any]]) -> None:
    found.insert(0, {"registry_name": "pi0_new_line_processor", "config": {}})


def no_quantiles(folder: Path) -> None:
    (path,) = folder.glob("policy_preprocessor_step_*.safetensors")

    kept = {key: value for key, value in load_file(path).items() if not key.endswith("q99")}
    save_file(kept, path)


def is_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


BROKEN = {
    "no prompt": (
        steps(without_prompt),
        r"must normalise the state, write it into the prompt by .*; it has:",
    ),
    "normalised last": (
        steps(normalised_last),
        r"in this order; it has: pi05_prepare.*, normalizer_processor$",
    ),
    "pi0's step": (steps(new_line), r"has a step 'pi0_new_line_processor', and what it does to a request"),
    "no statistics": (
        lambda folder: (folder / "policy_preprocessor.json").unlink(),
        r"has no policy_preprocessor\.json, so no statistics",
    ),
    "no quantiles": (
        no_quantiles,
        r"is normalised by QUANTILES, and normalizer_processor has no q01 and q99 of",
    ),
    "pi0's weights": (
        weights(lambda found: found.update({"model.state_proj.bias": torch.zeros(32)})),
        r"does not fit its config\.json: unknown keys \(1\): model\.state_proj\.bias$",
    ),
    "missing key": (
        weights(lambda found: found.pop(f"{EXPERT}layers.1.post_attention_layernorm.dense.bias")),
        r"missing keys \(1\): .*layers\.1\.post_attention_layernorm\.dense\.bias$",
    ),
    "wrong shape": (
        weights(lambda found: found.update({f"{EXPERT}norm.dense.weight": torch.zeros(64, 32)})),
        r"other shapes \(1\): .*norm\.dense\.weight \[64, 32\] instead of \[96, 32\]$",
    ),
    "newer format": (
        config(rtc_training_max_delay=4),
        r"fields that are not known here.*: rtc_training_max_delay",
    ),
    "relative actions": (
        config(use_relative_actions=True),
        r"contradicts itself: use_relative_actions is True in config\.json, and `enabled` is False of",
    ),
    "another type": (
        config(type="pi06"),
        r"is a policy of type 'pi06'; read are: act, diffusion, pi0, pi05, smolvla$",
    ),
    "pickle": (is_pickle, r"has its weights in pytorch_model\.bin, a pickle"),
    "no state": (
        lambda folder: edit_json(
            folder / "config.json", lambda found: found["input_features"].pop("observation.state")
        ),
        r"needs a vector 'observation\.state' among its features",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_pi05_is_one_line(folder: Path, fault: str) -> None:
    damage, message = BROKEN[fault]
    damage(folder)

    refused_in_one_line(read_pi, folder, message)


def test_the_golden_states_rest_and_leave_their_range(sound: Path) -> None:
    source = read_pi(sound)
    assert source.state
    states = [np.array(request["steps"][0]["state"], np.float32) for request in recorded("pi05")["requests"]]

    bins = np.array([source.state.binned(state, 256) for state in states])

    assert bins.min() == -1
    assert bins.max() == 255
    assert (bins[:, -1] == 0).all()

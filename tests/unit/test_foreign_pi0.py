"""LeRobot's pi0: what is refused in one line, and the names that its weights have had."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.folders import TOKENIZER, edit_json, edit_weights, read_pi, rebuilt
from golden.in_process import refused_in_one_line

from export.errors import ExportError
from export.foreign import paligemma
from export.foreign.pi0.model import Config, Pi0
from export.source import Source

LAYERS = "model.paligemma_with_expert.gemma_expert.model.layers"
TOWER = "model.paligemma_with_expert.paligemma.model.vision_tower."
WORDS = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rebuilt("pi0", tmp_path_factory.mktemp("sound"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "pi0"))


def chunk(source: Source) -> torch.Tensor:
    """Return a normalised chunk [1, T, A] of the folder's own requests."""
    random, model = torch.Generator().manual_seed(0), source.model
    images = {
        camera.name: torch.rand(1, 3, camera.height, camera.width, generator=random)
        for camera in source.cameras
    }
    reader, noise = source.command_tokenizer(), torch.randn(1, *source.noise or (), generator=random)
    assert reader
    ids, mask = (torch.from_numpy(value)[None] for value in reader("open the drawer"))
    with torch.inference_mode():
        command = model.encode_command(ids, mask)  # pyright: ignore[reportCallIssue]
        return model.act(images, command, torch.zeros(1, 32), noise)["actions"]  # pyright: ignore[reportCallIssue]


def renamed(change: Callable[[str], str | None]) -> Callable[[dict[str, torch.Tensor]], None]:
    """Return what gives every weight another name, or drops it."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            value, name = tensors.pop(key), change(key)
            if name is not None:
                tensors[name] = value

    return edit


NAMES: dict[str, Callable[[str], str | None]] = {
    "openpi's": lambda key: key.removeprefix("model."),
    "a later tower's": lambda key: key.replace(f"{TOWER}vision_model.", TOWER),
    "one for head and words": lambda key: {HEAD: None, WORDS: HEAD}.get(key, key),
    "no expert's head": lambda key: None if key.endswith("gemma_expert.lm_head.weight") else key,
}


@pytest.mark.parametrize("names", NAMES)
def test_weights_are_known_under_each_of_their_names(sound: Path, folder: Path, names: str) -> None:
    edit_weights(folder, renamed(NAMES[names]))

    assert torch.equal(chunk(read_pi(folder)), chunk(read_pi(sound)))


def test_every_weight_of_full_size_has_its_place() -> None:
    recorded = json.loads((TOKENIZER.parent / "full_size.json").read_text())
    shapes = {key: tuple(shape) for key, shape in recorded.items()}
    tower = paligemma.tower(shapes, 224)
    sizes = (paligemma.language(shapes, "gemma_2b"), paligemma.expert(shapes, "gemma_300m"))
    with torch.device("meta"):
        model = Pi0(Config(tower, *sizes, paligemma.vocabulary(shapes), 32, 32, 50, 10, 0.004, 4.0))
    table = paligemma.table(shapes, paligemma.OF_PI0)

    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    placed = {table.target(key): shape for key, shape in shapes.items() if not table.needless(key)}

    assert placed == wanted
    both = "model.paligemma_with_expert."
    assert {key for key in shapes if table.needless(key)} == {
        f"{both}gemma_expert.lm_head.weight",
        f"{both}paligemma.lm_head.weight",
        f"{both}paligemma.model.language_model.norm.weight",
    }
    assert round(sum(value.numel() for value in model.parameters()) / 1e9, 2) == 3.24


def config(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda found: found.update(fields))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, change)


def step(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return what changes the configuration of one step of the preprocessor."""

    def edit(found: dict[str, Any]) -> None:
        (place,) = (s for s in found["steps"] if s["registry_name"] == name)
        change(place["config"])

    return lambda folder: edit_json(folder / "policy_preprocessor.json", edit)


def without(name: str) -> Callable[[Path], None]:
    def edit(found: dict[str, Any]) -> None:
        found["steps"] = [s for s in found["steps"] if s["registry_name"] != name]

    return lambda folder: edit_json(folder / "policy_preprocessor.json", edit)


def without_layer(folder: Path) -> None:
    edit_weights(folder, renamed(lambda key: None if key.startswith(f"{LAYERS}.1.") else key))


def no_processors(folder: Path) -> None:
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (folder / name).unlink()


BROKEN = {
    "no statistics": (no_processors, r"has no policy_preprocessor\.json and no .* so no statistics"),
    "missing key": (
        weights(lambda found: found.pop("model.state_proj.bias")),
        r"does not fit its config\.json: missing keys \(1\): model\.state_proj\.bias$",
    ),
    "extra key": (
        weights(lambda found: found.update({"model.time_mlp_in.bias": torch.zeros(1)})),
        r"does not fit its config\.json: unknown keys \(1\): model\.time_mlp_in\.bias$",
    ),
    "wrong shape": (
        config(max_action_dim=24),
        r"other shapes \(3\): model\.action_in_proj\.weight \[32, 32\] instead of \[32, 24\]",
    ),
    "missing layer": (without_layer, r"\(2, 4, 16\) in PaliGemma and \(1, 4, 16\) in the expert"),
    "no expert": (
        weights(renamed(lambda key: None if "gemma_expert" in key else key)),
        r"the weights are no pi0's: .*gemma_expert\.model\.layers\.0\.mlp\.up_proj\.weight is missing",
    ),
    "no tower": (
        weights(renamed(lambda key: None if "vision_tower" in key else key)),
        r"the weights are no pi0's: .*patch_embedding\.weight is missing",
    ),
    "newer format": (
        config(use_flow_head=True),
        r"fields that are not known here, as of a newer LeRobot: use_flow_head;",
    ),
    "older format": (
        lambda folder: edit_json(folder / "config.json", lambda f: f.pop("dtype")),
        r"has no 'dtype'",
    ),
    "another variant": (
        config(action_expert_variant="gemma_7b"),
        r"action_expert_variant is 'gemma_7b'; read are: gemma_300m, gemma_2b$",
    ),
    "relative actions": (
        config(use_relative_actions=True),
        r"contradicts itself: use_relative_actions is True in config\.json, and `enabled` is False of",
    ),
    "relative steps": (
        step("relative_actions_processor", lambda found: found.update(enabled=True)),
        r"use_relative_actions is False .* is True of the step .* and False of 'absolute_actions_processor'$",
    ),
    "no tokenizer's step": (without("tokenizer_processor"), r"has no step 'tokenizer_processor', so nothing"),
    "no length": (
        step("tokenizer_processor", lambda found: found.pop("max_length")),
        r"policy_preprocessor\.json: Expected `int`, got `null`",
    ),
    "no square": (config(image_resolution=[56, 48]), r"image_resolution is 56 x 48, which no pi0 has"),
    "no resolution": (config(image_resolution=56), r"config\.json: Expected `array`, got `int`"),
    "normalised pictures": (
        step("normalizer_processor", lambda found: found["norm_map"].update(VISUAL="MEAN_STD")),
        r"pictures are normalised by the dataset's statistics, which no pi0 is$",
    ),
    "no steps": (config(num_inference_steps=0), r"denoising steps must be 1 at least, got 0"),
    "no camera": (
        lambda folder: edit_json(
            folder / "config.json",
            lambda found: [
                found["input_features"].pop(f"observation.images.{c}") for c in ("front", "wrist")
            ],
        ),
        r"names no picture among its input_features",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_pi0_is_one_line(folder: Path, fault: str) -> None:
    damage, message = BROKEN[fault]
    damage(folder)

    refused_in_one_line(read_pi, folder, message)


def word_level(found: dict[str, Any]) -> None:
    found["post_processor"] = None


def deaf(found: dict[str, Any]) -> None:
    found["pre_tokenizer"] = {"type": "Whitespace"}


def larger(found: dict[str, Any]) -> None:
    found["added_tokens"].append(found["added_tokens"][-1] | {"id": 320, "content": "<extra>"})


TOKENIZERS = {
    "without <bos>": (word_level, r"does not begin a command with <bos>, as PaliGemma's does$"),
    "without lines": (deaf, r"has no token for the end of a line, as the policy's does$"),
    "too large": (larger, r"has 321 entries and the policy knows 319: it is of another model$"),
    "no tokenizer": (lambda found: found.clear(), r"is no tokenizer\.json: "),
}


@pytest.mark.parametrize("fault", TOKENIZERS)
def test_a_wrong_tokenizer_is_one_line(sound: Path, tmp_path: Path, fault: str) -> None:
    damage, message = TOKENIZERS[fault]
    wrong = Path(shutil.copyfile(TOKENIZER, tmp_path / "tokenizer.json"))
    edit_json(wrong, damage)

    with pytest.raises(ExportError, match=message):
        read_pi(sound, wrong)


def test_the_tokenizer_is_asked_for(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the folder comes without its tokenizer: give --tokenizer FILE"):
        read_pi(sound, None)
    with pytest.raises(ExportError, match=r"none\.json is missing$"):
        read_pi(sound, tmp_path / "none.json")


def test_what_a_pi0_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(dtype="bfloat16")(folder)
    older = ("use_relative_actions", "relative_exclude_joints", "action_feature_names")
    edit_json(folder / "config.json", lambda found: [found.pop(name) for name in older])

    source = read_pi(folder, denoising_steps=2)

    assert "LeRobot computes it in bfloat16" in capsys.readouterr().out
    assert source.provenance["imported"]["denoising_steps"] == 2
    assert source.noise == (5, 32)
    front, wrist = source.cameras
    assert (front.width, front.height, front.resize) == (96, 72, "none")
    assert (wrist.width, wrist.height, wrist.resize, wrist.interpolation) == (56, 56, "pad", "bilinear")
    assert source.tokenizer
    assert (source.tokenizer.context_length, source.tokenizer.template) == (48, "{command}\n")


def test_text_for_a_picture_is_read_as_some_word(sound: Path) -> None:
    source = read_pi(sound)
    reader = source.command_tokenizer()
    assert reader

    ids, mask = (torch.from_numpy(value)[None] for value in reader("a <image>"))

    assert int(ids.max()) == json.loads(TOKENIZER.read_text())["added_tokens"][-1]["id"] == 319
    tokens = source.model.encode_command(ids, mask)["tokens"]  # pyright: ignore[reportCallIssue]
    assert torch.isfinite(tokens).all()

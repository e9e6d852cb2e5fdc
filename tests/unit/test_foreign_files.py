"""Folders as strangers have them: in shards, in a hub's cache, in half precision, and broken ones."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden.folders import TOKENIZER, edit_json, edit_weights, read_pi, rebuilt
from golden.in_process import refused_in_one_line
from safetensors.torch import load_file, save_file

from export.find import find
from export.foreign.facts import Facts

WEIGHTS, FRONT = "model.safetensors", "observation.images.front"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rebuilt("pi0", tmp_path_factory.mktemp("sound"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "pi0")


def same_weights(first: Path, second: Path) -> bool:
    one, other = (read_pi(folder).model.state_dict() for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def shard(folder: Path) -> None:
    """Save the weights in two files and an index, as save_pretrained does with large ones."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    places = {
        name: f"model-0000{1 + 2 * place // len(names)}.safetensors" for place, name in enumerate(names)
    }
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, folder / file)
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_weights_in_shards_are_the_same(sound: Path, folder: Path) -> None:
    shard(folder)

    assert same_weights(sound, folder)
    assert "model-00002.safetensors" in read_pi(folder).provenance["imported"]["sha256"]


def test_a_hubs_cache_is_read_through_its_links(sound: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "4d7a"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in sound.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(sound)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))

    assert same_weights(sound, snapshot)


def test_half_precision_is_widened(sound: Path, folder: Path) -> None:
    weights = load_file(sound / WEIGHTS)
    save_file({name: value.half() for name, value in weights.items()}, folder / WEIGHTS)
    (name, wide), *_ = read_pi(folder).model.state_dict().items()

    assert wide.dtype == torch.float32
    assert torch.equal(wide, read_pi(sound).model.state_dict()[name].half().float())


def test_a_path_may_begin_in_the_home_folder(
    sound: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    shutil.copy(TOKENIZER, folder.parent / "words.json")

    found = find(
        "~/pi0",
        Facts(
            origin="lerobot", names=Path("~/pi0/meta/info.json"), tokenizer=Path("~/words.json"), margin=1.0
        ),
    )

    assert found.provenance["imported"]["sha256"] == read_pi(sound).provenance["imported"]["sha256"]


def eight_bits(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name: value.to(torch.int8) for name, value in weights.items()}, folder / WEIGHTS)


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def not_finite(weights: dict[str, torch.Tensor]) -> None:
    weights["model.state_proj.bias"][3] = float("nan")


def without_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002.safetensors").unlink()


def index_of_others(folder: Path) -> None:
    shard(folder)
    edit_json(folder / f"{WEIGHTS}.index.json", lambda found: found["weight_map"].popitem())


def index_that_leads_away(folder: Path) -> None:
    shard(folder)
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))
    (folder / "model-00002.safetensors").rename(folder.parent / "model-00002.safetensors")


def index_without_a_map(folder: Path) -> None:
    shard(folder)
    (folder / f"{WEIGHTS}.index.json").write_text("[]")


def epsilon_of_text(folder: Path) -> None:
    def change(found: dict) -> None:
        for step in found["steps"]:
            if step["registry_name"] == "normalizer_processor":
                step["config"]["eps"] = "small"

    edit_json(folder / "policy_preprocessor.json", change)


def endless(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def large_pictures(folder: Path) -> None:
    shape = [3, 100_000, 100_000]
    edit_json(folder / "config.json", lambda found: found["input_features"][FRONT].update(shape=shape))


def rate_of_text(folder: Path) -> None:
    edit_json(folder / "meta" / "info.json", lambda found: found.update(fps="30"))


def no_features(folder: Path) -> None:
    edit_json(folder / "meta" / "info.json", lambda found: found.update(features=[]))


def names_that_meet(folder: Path) -> None:
    def change(found: dict) -> None:
        inputs = found["input_features"]
        front, wrist = (inputs.pop(key) for key in (FRONT, "observation.images.wrist"))
        inputs |= {"observation.images.a.b": front, "observation.images.a_b": wrist}

    edit_json(folder / "config.json", change)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "quantised": (eight_bits, r"is of type int8, as of a quantised policy; read are: float64, float32, "),
    "not fetched": (pointer, r"is a pointer of Git LFS, and not the file itself: run `git lfs pull`$"),
    "nan": (lambda path: edit_weights(path, not_finite), r"state_proj\.bias has values that are not finite$"),
    "a shard is missing": (without_a_shard, r"model-00002\.safetensors is missing$"),
    "index of others": (index_of_others, r"index\.json and model-00002.* have different weights \(1\): "),
    "index leads away": (index_that_leads_away, r"names '\.\./model-00002.*', which is no file beside it$"),
    "index is no index": (index_without_a_map, r"index\.json has no weight_map"),
    "endless JSON": (endless, r"config\.json is not JSON: "),
    "large pictures": (large_pictures, r"has edges of \[100000, 100000\] pixels$"),
    "rate": (rate_of_text, r"is not a dataset's meta/info\.json: Expected `float \| null`, got `str`$"),
    "features": (no_features, r"is not a dataset's meta/info\.json: Expected `object`, got `array`$"),
    "names that meet": (names_that_meet, r"would be called the same in requests: a_b, a_b$"),
    "epsilon": (epsilon_of_text, r"eps must be a number, 0 at least, got 'small'$"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_one_line(folder: Path, name: str) -> None:
    change, message = BROKEN[name]
    change(folder)

    refused_in_one_line(read_pi, folder, message)


def test_the_folder_above_is_told_apart(folder: Path) -> None:
    above = folder.parent / "checkpoint"
    above.mkdir()
    folder.rename(above / "pretrained_model")

    refused_in_one_line(
        read_pi, above, r"has no config\.json, and a folder pretrained_model: name .*/pretrained_model$"
    )


@pytest.mark.parametrize(("fact", "value"), [("margin", -0.5), ("denoising_steps", 0)])
def test_facts_without_sense_are_refused(sound: Path, fact: str, value: float) -> None:
    refused_in_one_line(
        lambda path: read_pi(path, TOKENIZER, **{fact: value}), sound, rf"at least, got {value}$"
    )


def test_the_end_of_a_line_is_not_said_twice(sound: Path) -> None:
    """As LeRobot's Pi0NewLineProcessor, which adds one only where there is none, and strips nothing."""
    reader = read_pi(sound).command_tokenizer()
    assert reader

    plain, ended, twice, spaced = (
        reader(command)[0].tolist() for command in ("fold it", "fold it\n", "fold it\n\n", " fold it")
    )

    assert plain == ended
    assert twice != plain
    assert spaced != plain

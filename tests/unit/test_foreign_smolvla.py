"""LeRobot's SmolVLA: what the real library answers, and what is refused in one line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.folders import SMOLVLM, edit_json, edit_weights, read_pi, rebuilt, recorded
from golden.in_process import parity, refused_in_one_line

from export.errors import ExportError
from export.foreign import lerobot_smolvla
from export.foreign.facts import Facts, Names
from export.foreign.folder import Folder
from export.foreign.pi0.smolvla import SmolVLA, build, places
from export.source import Source

BOTH = "model.vlm_with_expert."
WORDS = f"{BOTH}vlm.model.text_model.embed_tokens.weight"
HEAD = f"{BOTH}vlm.lm_head.weight"
EXPERT = f"{BOTH}lm_expert.layers"


def read(folder: Path, **facts: Any) -> Source:
    return read_pi(
        folder, **{"tokenizer": SMOLVLM / "tokenizer.json", "vlm": SMOLVLM / "config.json"} | facts
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rebuilt("smolvla", tmp_path_factory.mktemp("sound"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "smolvla"))


def test_answers_are_the_librarys(sound: Path) -> None:
    assert parity(read(sound), recorded("smolvla")) <= 1e-5


def test_answers_of_other_layers_and_pictures_are_the_librarys(tmp_path: Path) -> None:
    source = read(rebuilt("smolvla_one_camera", tmp_path), margin=3.0)

    assert parity(source, recorded("smolvla_one_camera")) <= 1e-5
    assert isinstance(source.model, SmolVLA)
    assert source.model.config.own_every == 1
    assert source.model.config.trained == 8
    assert [camera.name for camera in source.cameras] == ["top"]


def test_patches_of_another_size_keep_their_places() -> None:
    assert places(32, 32, "cpu").tolist() == list(range(32))
    assert places(6, 8, "cpu").tolist() == [0, 1, 2, 4, 5, 6]
    assert places(4, 2, "cpu").tolist() == [0, 0, 1, 1]


def test_words_may_be_kept_under_the_heads_name(sound: Path, folder: Path) -> None:
    edit_weights(folder, lambda found: found.update({HEAD: found.pop(WORDS)}))

    found, expected = (read(path).model.state_dict()["embed_tokens.weight"] for path in (folder, sound))

    assert torch.equal(found, expected)


def test_an_eager_archive_builds_the_same_module(sound: Path) -> None:
    source = read(sound)
    assert source.eager
    assert source.eager.factory == "pi0.smolvla:build"

    built = build(**json.loads(json.dumps(source.eager.arguments))).eval()
    built.load_state_dict(source.model.state_dict())

    assert source.eager.arguments == asdict(built.config)
    object.__setattr__(source, "model", built)
    assert parity(source, recorded("smolvla")) <= 1e-5


def test_what_a_smolvla_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(load_vlm_weights=True)(folder)

    source = read(folder, denoising_steps=2)

    assert "LeRobot computes its vision-language model in bfloat16" in capsys.readouterr().out
    about = source.provenance["imported"]
    assert (about["type"], about["denoising_steps"], about["ignored_weights"]) == ("smolvla", 2, 2)
    assert source.noise == (5, 32)
    assert source.tokenizer
    assert (source.tokenizer.context_length, source.tokenizer.template) == (48, "{command}\n")
    sizes = [(camera.width, camera.height, camera.resize, camera.values) for camera in source.cameras]
    assert sizes == [(96, 72, "none", "minus_one_to_one"), (64, 64, "none", "minus_one_to_one")]


def config(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda found: found.update(fields))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, change)


def without(part: str) -> Callable[[Path], None]:
    """Return what drops every weight that has a part in its name."""

    def edit(found: dict[str, torch.Tensor]) -> None:
        for key in [key for key in found if part in key]:
            found.pop(key)

    return weights(edit)


def without_tokens(folder: Path) -> None:
    def edit(found: dict[str, Any]) -> None:
        found["steps"] = [s for s in found["steps"] if s["registry_name"] != "tokenizer_processor"]

    edit_json(folder / "policy_preprocessor.json", edit)


def normalised_pictures(folder: Path) -> None:
    for step in ("pre", "post"):
        edit_json(
            folder / f"policy_{step}processor.json",
            lambda found: [
                s["config"]["norm_map"].update(VISUAL="MEAN_STD")
                for s in found["steps"]
                if "norm_map" in s["config"]
            ],
        )


def no_processors(folder: Path) -> None:
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(20))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no statistics": (no_processors, r"has no policy_preprocessor\.json and no .* so no statistics"),
    "pickle": (pickled, r"is a pickle by its first bytes"),
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
        r"other shapes \(3\): model\.action_in_proj\.weight \[48, 32\]",
    ),
    "other attention": (
        config(self_attn_every_n_layers=3),
        r"other shapes \(4\): .*layers\.2\.self_attn\.k_proj\.weight \[32, 48\] instead of \[32, 32\]",
    ),
    "missing layer": (without(f"{EXPERT}.3."), r"\(4, 4, 2\) in SmolVLM and \(3, 4, 2\) in the expert$"),
    "no expert": (
        without("lm_expert"),
        r"no SmolVLA's: .*lm_expert\.layers\.0\.mlp\.up_proj\.weight is missing$",
    ),
    "no tower": (without("vision_model"), r"no SmolVLA's: .*patch_embedding\.weight is missing$"),
    "fewer layers said": (config(num_vlm_layers=2), r"num_vlm_layers is 2, and the weights have 4$"),
    "fewer layers of the expert": (config(num_expert_layers=2), r"num_expert_layers is 2 beside 4 of the"),
    "newer format": (config(use_flow_head=True), r"fields that are not known here, .*: use_flow_head;"),
    "older format": (
        lambda folder: edit_json(folder / "config.json", lambda f: f.pop("attention_mode")),
        r"has no 'attention_mode'",
    ),
    "aloha": (config(adapt_to_pi_aloha=True), r"adapt_to_pi_aloha is True; read are: False$"),
    "special tokens": (
        config(add_image_special_tokens=True),
        r"add_image_special_tokens is True; read are: False$",
    ),
    "another mode": (
        config(attention_mode="none"),
        r"attention_mode is 'none'; read are: cross_attn, self_attn$",
    ),
    "no square": (
        config(resize_imgs_with_padding=[64, 48]),
        r"resize_imgs_with_padding is 64 x 48, and a SmolVLM",
    ),
    "own size": (config(resize_imgs_with_padding=None), r"config\.json: Expected `array`, got `null`$"),
    "no patches": (config(resize_imgs_with_padding=[60, 60]), r"60 x 60 pixels don't part into patches of 8"),
    "no steps": (config(num_steps=0), r"denoising steps must be 1 at least, got 0$"),
    "no tokenizer's step": (
        without_tokens,
        r"has no step 'tokenizer_processor', so nothing says how commands",
    ),
    "normalised pictures": (
        normalised_pictures,
        r"normalised by the dataset's statistics, which no SmolVLA is$",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_smolvla_is_one_line(folder: Path, fault: str) -> None:
    damage, message = BROKEN[fault]
    damage(folder)

    refused_in_one_line(read, folder, message)


VLMS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another width": (
        lambda found: found["text_config"].update(hidden_size=32),
        r"is of a model 32 wide, and the weights' has 64$",
    ),
    "other heads": (
        lambda found: found["text_config"].update(head_dim=24),
        r"the weights are no SmolVLA's: 64 and 32 in .* are no heads of 24$",
    ),
    "other heads of the tower": (
        lambda found: found["vision_config"].update(num_attention_heads=5),
        r"the picture tower is 48 wide, which 5 heads can't share$",
    ),
    "another activation": (
        lambda found: found["text_config"].update(hidden_act="gelu"),
        r"is of no SmolVLM: other activations, biases or an epsilon$",
    ),
    "no config": (lambda found: found.clear(), r"Object missing required field `text_config`$"),
}


@pytest.mark.parametrize("fault", VLMS)
def test_another_vision_language_model_is_one_line(sound: Path, tmp_path: Path, fault: str) -> None:
    damage, message = VLMS[fault]
    wrong = Path(shutil.copyfile(SMOLVLM / "config.json", tmp_path / "config.json"))
    edit_json(wrong, damage)

    with pytest.raises(ExportError, match=message):
        read(sound, vlm=wrong)


def test_what_the_folder_does_not_say_is_asked_for(sound: Path, folder: Path) -> None:
    with pytest.raises(
        ExportError, match=r"names .*SmolVLM2-500M-Video-Instruct, and nothing .*: give --vlm FILE"
    ):
        read(sound, vlm=None)
    with pytest.raises(
        ExportError, match=r"give --tokenizer FILE, the tokenizer\.json of HuggingFaceTB/SmolVLM2"
    ):
        read(sound, tokenizer=None)
    config(vlm_model_name="somebody/SmolVLM3")(folder)
    with pytest.raises(
        ExportError, match=r"names the vision-language model somebody/SmolVLM3, and nothing says"
    ):
        read(folder, vlm=None)


def test_every_weight_of_full_size_has_its_place(sound: Path) -> None:
    recorded = json.loads((SMOLVLM / "full_size.json").read_text())
    shapes = {key: tuple(shape) for key, shape in recorded.items()}
    said = json.loads((sound / "config.json").read_text())
    said |= {"resize_imgs_with_padding": [512, 512], "chunk_size": 50, "num_vlm_layers": 16, "num_steps": 10}
    folder = Folder(sound, said, Facts(), Names(action=()), {}, {})
    with torch.device("meta"):
        model = SmolVLA(lerobot_smolvla.config_of(folder, shapes))
    table = lerobot_smolvla.table(shapes)

    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    placed = {table.target(key): shape for key, shape in shapes.items() if not table.needless(key)}

    assert placed == wanted
    assert {key for key in shapes if table.needless(key)} == {HEAD, f"{BOTH}vlm.model.text_model.norm.weight"}
    assert (model.config.language.heads, model.config.expert.width, model.config.own_every) == (15, 720, 2)
    assert round(sum(value.numel() for value in model.parameters()) / 1e6) == 403

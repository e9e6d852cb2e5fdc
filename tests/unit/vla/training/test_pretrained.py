"""`--pretrained`: folders that transformers saves fill the towers of their kind; others are refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
    EfficientNetConfig,
    EfficientNetModel,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from vla import checkpoint
from vla.models import Sizes, build, module_of
from vla.training.imitation import train
from vla.training.pretrained import tokenizer_values, tower_values
from vla.training.settings import Settings
from vla_runtime.preprocessing import CommandTokenizer

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "lift", "push", "reach", "the", "red", "blue", "block", "##s"]
RESNET: Any = {
    "hidden_sizes": [4, 8, 16, 32],
    "embedding_size": 4,
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}
DISTILBERT: Any = {"dim": 12, "n_layers": 1, "n_heads": 2, "hidden_dim": 20, "max_position_embeddings": 40}
TOWER: Any = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip():
    text = TOWER | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


MAKERS: dict[str, Callable[[], Any]] = {
    "clip": clip,
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(**RESNET)),
    "mobilenet_v2": lambda: MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.15)),
    "efficientnet": lambda: EfficientNetModel(
        EfficientNetConfig(width_coefficient=0.25, depth_coefficient=1.0, hidden_dim=320)
    ),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=len(WORDS), **DISTILBERT)),
    # Of CLIP's vocabulary, so that nothing but its kind tells it from CLIP's text tower.
    "bert": lambda: BertModel(BertConfig(vocab_size=49408, **TOWER)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind with random weights, batch norms' statistics among them."""
    root = tmp_path_factory.mktemp("published")
    torch.manual_seed(5)
    for kind, make in MAKERS.items():
        model = make()
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
        model.save_pretrained(root / kind)
    pieces: Any = tokenizers.models.WordPiece
    words = {word: index for index, word in enumerate(WORDS)}
    tokenizer: Any = tokenizers.Tokenizer(pieces(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.save(str(root / "distilbert" / "tokenizer.json"))
    return root


def built(architecture, folders, vocabulary=49408) -> Any:
    config = asdict(module_of(architecture).Config.tiny())
    sizes = Sizes(
        cameras=1, image_size=32, context_length=20, vocabulary=vocabulary, state=4, horizon=2, action=3
    )
    return build(architecture, tower_values(architecture, config, folders), sizes)


@pytest.mark.parametrize(
    ("architecture", "kind", "part"),
    [
        ("clip", "clip", "vision"),
        ("vl_transformer", "clip", "text"),
        ("early_fusion", "resnet", "tower"),
        ("late_fusion", "resnet", "tower"),
        ("efficient", "mobilenet_v2", "tower"),
        ("realtime", "mobilenet_v2", "tower"),
        ("memory_efficient", "efficientnet", "tower"),
    ],
)
def test_a_tower_computes_what_the_published_model_does(folders, architecture, kind, part):
    """Even where the preset has other sizes."""
    model = built(architecture, [folders / kind]).eval()
    original = type(MAKERS[kind]()).from_pretrained(folders / kind).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        if kind == "clip":
            ids = torch.tensor([[49406, 320, 49407, 49407]])
            ours = model.vision(images) if part == "vision" else model.text(ids)
            theirs = original.vision_model(images) if part == "vision" else original.text_model(ids)
            torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state)
            return
        base = getattr(original, original.base_model_prefix, original)
        seen = base(images, output_hidden_states=True).hidden_states
        answer = model.tower(images)
        assert any(each.shape == answer.shape and torch.allclose(each, answer, atol=1e-5) for each in seen)
    assert model.config.checkpoint is None
    build(architecture, asdict(model.config), model.sizes).load_state_dict(model.state_dict())


@pytest.mark.parametrize("architecture", ["efficient", "memory_efficient"])
def test_a_distilbert_computes_what_the_published_one_does(folders, architecture):
    vision = "mobilenet_v2" if architecture == "efficient" else "efficientnet"
    model = built(architecture, [folders / "distilbert", folders / vision], len(WORDS)).eval()
    original: Any = DistilBertModel.from_pretrained(folders / "distilbert").eval()
    ids = torch.tensor([[1, 4, 7, 8, 10, 2], [1, 5, 2, 0, 0, 0]])
    mask = (ids > 0).long()
    with torch.inference_mode():
        theirs = original(input_ids=ids, attention_mask=mask).last_hidden_state
        expected, _ = model.text_encoder.pooling(theirs, mask.bool())
        torch.testing.assert_close(model.text_encoder(ids, mask), expected)
    assert (model.config.checkpoint, model.config.text_checkpoint) == (None, None)


@pytest.mark.parametrize(
    ("architecture", "kinds", "message"),
    [
        ("clip", ["bert"], "bert holds a bert; clip takes clip$"),
        ("efficient", ["bert"], "bert holds a bert; efficient takes mobilenet_v2 and distilbert$"),
        (
            "memory_efficient",
            ["mobilenet_v2"],
            "holds a mobilenet_v2; memory_efficient takes effi",
        ),
        ("grounded", ["clip"], "holds a clip; grounded has no published tower$"),
        ("realtime", ["mobilenet_v2", "mobilenet_v2"], "is the second mobilenet_v2; realtime has one$"),
    ],
)
def test_a_folder_of_another_kind_is_refused(folders, architecture, kinds, message):
    with pytest.raises(ValueError, match=message):
        built(architecture, [folders / kind for kind in kinds])


def test_the_kind_is_refused_by_the_model_too(folders):
    config = asdict(module_of("clip").Config.tiny()) | {"checkpoint": str(folders / "bert")}
    sizes = Sizes(cameras=1, image_size=32, context_length=20, vocabulary=49408, state=4, horizon=2, action=3)
    with pytest.raises(ValueError, match="bert holds a bert, where a clip is wanted"):
        build("clip", config, sizes)


def changed(folder, copy, **values):
    """Copy a folder, with other values in its configuration."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | values))
    return copy


def test_a_damaged_folder_is_refused(folders, tmp_path):
    nameless = changed(folders / "resnet", tmp_path / "nameless", model_type=None)
    with pytest.raises(ValueError, match="has no model_type: it is no model as transformers saves it"):
        built("early_fusion", [nameless])
    deeper = changed(folders / "resnet", tmp_path / "deeper", depths=[3, 4, 6, 3])
    with pytest.raises(ValueError, match=r"lacks \d+ weights of its resnet, encoder\.stages\.0\.layers\.2"):
        built("early_fusion", [deeper])
    other = changed(folders / "mobilenet_v2", tmp_path / "other", tf_padding=False)
    with pytest.raises(ValueError, match="has tf_padding False; the tower that takes it has True"):
        built("realtime", [other])
    holed = changed(folders / "clip", tmp_path / "holed")
    weights = load_file(holed / "model.safetensors")
    gone = "text_model.encoder.layers.0.mlp.fc1.weight"
    save_file(
        {name: each for name, each in weights.items() if name != gone},
        holed / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"lacks 1 weights of its clip, .*0\.mlp\.fc1\.weight for one"):
        built("clip", [holed])
    with pytest.raises(OSError, match="nowhere"):
        built("clip", [tmp_path / "nowhere"])


def test_a_tokenizer_of_another_vocabulary_is_refused(folders, tmp_path):
    more = changed(folders / "distilbert", tmp_path / "more", vocab_size=20)
    with pytest.raises(ValueError, match=r"tokenizer\.json has 12 entries, the model beside it 20$"):
        tokenizer_values("efficient", [more], 0)
    (more / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json, by which its words are read$"):
        tokenizer_values("efficient", [more], 0)


def test_a_policy_with_a_distilbert_carries_its_tokenizer(data, folders, tmp_path):
    settings = Settings(
        architecture="efficient",
        preset="tiny",
        data=data,
        out=tmp_path / "run",
        steps=2,
        batch=4,
        commands=2,
        validate_every=2,
        validation_share=0.3,
        threads=1,
        pretrained=(folders / "distilbert",),
    )
    train(settings)
    moved = tmp_path / "moved"
    (tmp_path / "run").rename(moved)
    model: Any
    config, model = checkpoint.load(moved)
    assert config.tokenizer.context_length == 40
    assert config.command_tokenizer()("lift the red blocks")[0].tolist()[:8] == [1, 4, 7, 8, 10, 11, 2, 0]
    assert (moved / "tokenizer.json").read_bytes() == (folders / "distilbert" / "tokenizer.json").read_bytes()
    layers = "transformer.layer.0.ffn.lin1.weight"
    theirs = load_file(folders / "distilbert" / "model.safetensors")[layers]
    assert (model.text_encoder.bert.state_dict()[layers] - theirs).abs().max() < 0.01
    again = replace(settings, out=tmp_path / "again", pretrained=(), start=moved, steps=2)
    with pytest.raises(ValueError, match="does not fit the model"):
        train(again)
    assert CommandTokenizer(config.tokenizer_folder, config.tokenizer).vocabulary == len(WORDS)

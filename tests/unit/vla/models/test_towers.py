"""What architectures share: towers that stay maps, encoders that ignore padding, attention that sums to 1."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MobileNetV2Config, MobileNetV2Model, ResNetConfig, ResNetModel

from vla.models import Sizes, build, module_of
from vla.models.parts.attention import Attention, Block
from vla.models.parts.published_towers import MOMENTUM, MobileNet, ResNet
from vla.models.parts.text import AttentionPooling, BagOfWords, Lstm, TextTransformer
from vla.models.parts.towers import Convolutions, Tower, encode_images

SIZES = Sizes(cameras=2, image_size=64, context_length=16, vocabulary=60, state=4, horizon=3, action=2)
RESNET = {"hidden_sizes": [4, 8, 16, 32], "embedding_size": 4, "depths": [2, 2, 2, 2], "layer_type": "basic"}


def centre_of_change(tower: Tower, x: int, y: int, edge: int) -> tuple[float, float]:
    """Return the mean place of the cells that a small square at (x, y) changes [pixels]."""
    picture = torch.zeros(1, 1, 3, 64, 64)
    picture[..., y - 2 : y + 2, x - 2 : x + 2] = 3.0
    changed = (encode_images(tower, picture) - encode_images(tower, torch.zeros_like(picture))).abs().sum(-1)
    places = changed[0, 0].unflatten(0, (edge, edge)) / changed.sum()
    centre = (torch.arange(edge) + 0.5) * 64 / edge
    return float(places.sum(0) @ centre), float(places.sum(1) @ centre)


@pytest.mark.parametrize(
    ("make", "channels", "edge"),
    [
        (lambda: Convolutions(8, 4, 1), 8, 16),
        (lambda: Convolutions(8, 8, 1), 8, 8),
        (lambda: ResNet(4, 1, None), 4, 16),
        (lambda: ResNet(4, 3, None), 16, 4),
        (lambda: MobileNet(0.2, 3, None), 8, 8),
    ],
)
def test_cells_keep_their_place(make, channels, edge):
    torch.manual_seed(0)
    tower = make().eval()
    with torch.inference_mode():
        assert encode_images(tower, torch.zeros(2, 3, 3, 64, 64)).shape == (2, 3, edge * edge, channels)
        (left, above), (right, below) = (centre_of_change(tower, *at, edge) for at in ((12, 16), (52, 48)))
    assert (tower.channels, tower.stride) == (channels, 64 // edge)
    assert right > left + 8
    assert below > above + 8


@pytest.mark.parametrize("make", [lambda: Convolutions(8, 16, 1), lambda: MobileNet(1.0, 6, None)])
def test_a_coarser_tower_is_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_running_statistics_are_those_of_many_batches():
    tower = MobileNet(0.2, 3, None)
    momenta = {module.momentum for module in tower.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {MOMENTUM}


@pytest.mark.parametrize(
    ("architecture", "original", "options"),
    [
        ("early_fusion", ResNetModel(ResNetConfig(**RESNET)), {"backbone": "resnet", "channels": 4}),
        ("late_fusion", ResNetModel(ResNetConfig(**RESNET)), {"backbone": "resnet", "channels": 4}),
        ("realtime", MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.2)), {"multiplier": 0.2}),
    ],
)
def test_a_tower_takes_a_local_checkpoint(tmp_path, architecture, original, options):
    original.save_pretrained(tmp_path)
    config = asdict(module_of(architecture).Config.tiny()) | options | {"checkpoint": str(tmp_path)}
    model: Any = build(architecture, config, SIZES)
    theirs, mine = original.state_dict(), model.tower.state_dict()
    first = "embedder.embedder" if "resnet" in options.values() else "conv_stem.first_conv"
    name = f"{first}.convolution.weight"
    torch.testing.assert_close(mine[name.replace("conv_stem", "stem")], theirs[name])
    # The configuration makes the same model again when the folder is gone.
    assert model.config.checkpoint is None
    build(architecture, asdict(model.config), SIZES).load_state_dict(model.state_dict())
    wrong = {"channels": 8} if "channels" in options else {"multiplier": 1.0}
    with pytest.raises(ValueError, match="does not fit a"):
        build(architecture, config | wrong, SIZES)
    with pytest.raises(OSError, match="nowhere"):
        build(architecture, config | {"checkpoint": str(tmp_path / "nowhere")}, SIZES)


@pytest.mark.parametrize("make", [BagOfWords, Lstm])
def test_a_sentence_does_not_read_its_padding(make):
    torch.manual_seed(0)
    encoder = make(60, 8).eval()
    nn.init.normal_(encoder.embedding.weight)
    ids, mask = torch.randint(0, 60, (3, 9)), (torch.arange(9) < torch.tensor([[3], [5], [7]])).long()
    with torch.inference_mode():
        expected = encoder(ids, mask)
        torch.testing.assert_close(encoder(torch.where(mask.bool(), ids, 5), mask), expected)
        torch.testing.assert_close(encoder(ids[:, :7], mask[:, :7]), expected)
        assert (expected[0] - encoder(ids.flip(1), mask)[0]).abs().max() > 0.01


def test_words_know_their_order():
    torch.manual_seed(0)
    encoder = TextTransformer(60, 16, 8, layers=1, heads=2, mlp_width=16).eval()
    nn.init.normal_(encoder.embedding.weight)
    ids, mask = torch.arange(4)[None], torch.ones(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        there, back = encoder(ids, mask), encoder(ids.flip(1), mask).flip(1)
    assert (there - back).abs().max() > 1e-3


def test_attention_sums_to_one_over_what_is_not_masked():
    torch.manual_seed(0)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    attention, queries, context = Attention(8, 2), torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    values, weights = attention.with_weights(queries, context, mask[:, None, None])
    assert weights.shape == (2, 2, 5, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5))
    assert not weights[0, :, :, 1].any()
    torch.testing.assert_close(attention(queries, context, mask[:, None, None]), values)
    block = Block(8, 2, 16, attends="context")
    tokens, weights = block.with_weights(queries, context)
    assert weights.shape == (2, 2, 5, 3)
    torch.testing.assert_close(block(queries, context), tokens)
    with pytest.raises(ValueError, match="width must be a multiple of the heads, got 9 and 2"):
        Attention(9, 2)


def test_a_summary_ignores_masked_tokens_even_if_they_are_not_finite():
    tokens, mask = torch.randn(1, 3, 4), torch.tensor([[True, True, False]])
    summary = AttentionPooling(4)
    expected, weights = summary(tokens, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1))
    assert weights[0, 2] == 0
    torch.testing.assert_close(summary(tokens[:, :2], mask[:, :2])[0], expected)


@pytest.fixture
def ask():
    """Ask a tiny model two random observations."""

    def answer(architecture: str):
        torch.manual_seed(0)
        model: Any = build(architecture, asdict(module_of(architecture).Config.tiny()), SIZES).eval()
        nn.init.normal_(model.text_encoder.embedding.weight)
        mask = (torch.arange(16) < torch.tensor([[3], [9]])).long()
        with torch.inference_mode():
            command = model.encode_command(torch.randint(0, 60, (2, 16)), mask)
            images, state = torch.randn(2, 2, 3, 64, 64), torch.randn(2, 4)
            return model.act(images, *command, state, torch.zeros(2, 0, 0)), mask.bool()

    return answer


def test_cross_modal_returns_its_attention_over_the_words(ask):
    answer, mask = ask("cross_modal")
    torch.testing.assert_close(answer["word_attention"].sum(1), torch.ones(2))
    assert not answer["word_attention"][~mask].any()
    assert (answer["word_attention"][mask] > 0).all()


def test_unified_is_surer_where_its_scale_is_small(ask):
    answer, _ = ask("unified")
    assert answer["scale"].shape == answer["actions"].shape
    assert (answer["scale"] > 0).all()
    chunks = torch.distributions.Normal(answer["actions"], answer["scale"])
    near = chunks.cdf(answer["actions"] + 0.2) - chunks.cdf(answer["actions"] - 0.2)
    torch.testing.assert_close(answer["confidence"], near.mean((1, 2)))
    assert ((answer["confidence"] > 0) & (answer["confidence"] < 1)).all()


@pytest.mark.parametrize("architecture", ["cross_modal", "unified"])
def test_further_outputs_are_declared(ask, architecture):
    known = {"actions", "attention", "confidence"}
    assert set(ask(architecture)[0]) - known == set(module_of(architecture).Model.extras)

"""Every architecture keeps the contract of `vla.models`."""

from dataclasses import asdict
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.fx.experimental import _config as fx_config

from vla.models import ARCHITECTURES, Batch, Sizes, build, module_of
from vla.training.validation import moved

pytestmark = [
    # What tracing looks at inside transformers, which warns of its own properties and of sizes it compares.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
SIZES = Sizes(cameras=2, image_size=96, context_length=16, vocabulary=49408, state=4, horizon=8, action=3)
END = 49407
OBJECTS, SKILLS = 4, 3


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    torch.manual_seed(0)
    made = build(request.param, asdict(module_of(request.param).Config.tiny()), SIZES)
    for parameter in made.parameters():  # fresh word vectors are zero: all commands would be equal
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made.eval()


def commands(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw commands of various lengths, padded with end tokens: int64 [rows, 16] twice."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40_000, (rows, SIZES.context_length), generator=random)
    length = torch.arange(rows).remainder(9)[:, None] + 4
    place = torch.arange(SIZES.context_length)[None]
    return torch.where(place < length - 1, ids, END), (place < length).long()


def observations(model, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw images, state, and noise for a model that reads it."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, SIZES.cameras, 3, SIZES.image_size, SIZES.image_size, generator=random)
    state = torch.randn(rows, SIZES.state, generator=random)
    shape = (rows, SIZES.horizon, SIZES.action) if getattr(model, "stochastic", False) else (rows, 0, 0)
    return images, state, torch.randn(shape, generator=random)


def act(model, rows: int, seed: int = 0, traced=None):
    """Ask the model, or its trace, which doesn't say whether it reads noise."""
    images, state, noise = observations(model, rows, seed)
    asked = traced or model
    with torch.inference_mode():
        return asked.act(images, *asked.encode_command(*commands(rows, seed)), state, noise)


def batch_of(images, state, ids, mask, actions) -> Batch:
    """Add privileged labels: skills and targets in turn, and objects that are small boxes in the pictures."""
    random = torch.Generator().manual_seed(2)
    corner = torch.rand(len(images), SIZES.cameras, OBJECTS, 2, generator=random) * 0.8
    return Batch(
        images,
        state,
        ids,
        mask,
        actions,
        skill=torch.arange(len(ids)) % SKILLS,
        target=torch.arange(len(ids)) % OBJECTS,
        objects=torch.rand(len(images), OBJECTS, 3, generator=random) - 0.5,
        boxes=torch.cat([corner, corner + 0.1], dim=-1),
        hand=torch.rand(len(images), 3, generator=random) - 0.5,
        hand_points=torch.rand(len(images), SIZES.cameras, 2, generator=random),
        done=torch.arange(len(ids)) % 3 > 0,
        possible=torch.arange(len(ids)) % 5 > 0,
        shown=torch.arange(len(images)) % 4 > 0,
    )


def test_shapes_and_dtypes(model):
    command, mask = model.encode_command(*commands(5))
    assert command.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert command.shape[:2] == mask.shape
    answer = act(model, 5)
    assert answer["actions"].shape == (5, SIZES.horizon, SIZES.action)
    assert answer["actions"].dtype == torch.float32
    attention = answer["attention"]
    assert attention.shape[:2] == (5, SIZES.cameras)
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(5, SIZES.cameras))


def test_traces_with_a_dynamic_batch(model):
    images, state, noise = observations(model, 2)
    with torch.no_grad():
        inputs = {
            "encode_command": commands(2),
            "act": (images, *model.encode_command(*commands(2)), state, noise),
        }
        traced = torch.jit.trace_module(model, inputs, strict=False, check_trace=False)
    for rows in (1, 3, 32):
        with torch.inference_mode():
            for mine, its in zip(
                model.encode_command(*commands(rows, 1)),
                traced.encode_command(*commands(rows, 1)),
                strict=True,
            ):
                torch.testing.assert_close(its, mine, atol=1e-5, rtol=0)
        expected, answer = act(model, rows, 1), act(model, rows, 1, traced)
        assert answer.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(answer[name], value, atol=1e-5, rtol=0)


def test_padding_of_a_command_is_not_read(model):
    ids, mask = commands(3)
    images, state, noise = observations(model, 3)
    with torch.inference_mode():
        full = model.act(images, *model.encode_command(ids, mask), state, noise)["actions"]
        other = torch.where(mask.bool(), ids, 123)
        replaced = model.act(images, *model.encode_command(other, mask), state, noise)["actions"]
        longest = int(mask.sum(1).max())
        cut = model.act(images, *model.encode_command(ids[:, :longest], mask[:, :longest]), state, noise)
    torch.testing.assert_close(replaced, full, atol=1e-5, rtol=0)
    torch.testing.assert_close(cut["actions"], full, atol=1e-5, rtol=0)


def test_masked_rows_of_an_encoded_command_are_not_read(model):
    images, state, noise = observations(model, 3)
    with torch.inference_mode():
        command, mask = model.encode_command(*commands(3))
        expected = model.act(images, command, mask, state, noise)["actions"]
        spoilt = torch.where(mask.unsqueeze(-1), command, torch.full_like(command, 1e3))
        answer = model.act(images, spoilt, mask, state, noise)["actions"]
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)


def test_a_row_does_not_depend_on_its_batch(model):
    together, images_and_more = act(model, 4)["actions"], observations(model, 4)
    images, state, noise = (part[2:3] for part in images_and_more)
    ids, mask = (part[2:3] for part in commands(4))
    with torch.inference_mode():
        alone = model.act(images, *model.encode_command(ids, mask), state, noise)["actions"]
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=0)


def test_loss_reaches_image_state_and_command(model):
    images, state, _ = observations(model, 2)
    ids, mask = commands(6)
    images.requires_grad_()
    state.requires_grad_()
    batch = batch_of(images, state, ids, mask, torch.randn(6, SIZES.horizon, SIZES.action))
    torch.stack(list(model.loss(batch).values())).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().amax((1, 2, 3, 4)).min() > 0
    assert state.grad is not None
    assert state.grad.abs().sum() > 0
    # One that reads letters has one more, which stands for none.
    tables = (SIZES.vocabulary, SIZES.vocabulary + 1)
    words = [value for value in model.parameters() if value.shape[0] in tables]
    assert len(words) == 1
    if model.selective:  # it reads some of the commands that it acts on
        ids, mask = ids[:2], mask[:2]
    assert words[0].grad[ids[mask.bool()]].abs().sum(-1).min() > 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_loss_stays_on_the_device_of_its_batch(model):
    """`meta` tensors mix with those of no other device, and cost nothing."""
    images, state, _ = observations(model, 2)
    ids, mask = commands(6)
    batch = batch_of(images, state, ids, mask, torch.randn(6, SIZES.horizon, SIZES.action))
    with cast("Any", fx_config).patch(meta_nonzero_assume_all_nonzero=True):
        terms = model.to("meta").loss(moved(batch, "meta"))
    assert {term.device.type for term in terms.values()} == {"meta"}


def test_loss_is_that_of_act(model):
    images, state, _ = observations(model, 2)
    ids, mask = commands(6)
    actions = torch.randn(6, SIZES.horizon, SIZES.action)
    with torch.inference_mode():
        loss = model.loss(batch_of(images, state, ids, mask, actions))
        twin = [part.repeat_interleave(3, 0) for part in (images, state)]
        noise = observations(model, 6)[2]
        answer = model.act(twin[0], *model.encode_command(ids, mask), twin[1], noise)["actions"]
    if "actions" not in loss:  # one that learns tokens or the removal of noise instead of the actions
        pytest.skip("the loss is not a distance between actions")
    if model.selective:
        pytest.skip("it learns to act on what the labels mean, not on what it reads")
    torch.testing.assert_close(loss["actions"], (answer - actions).square().mean())


def test_privileged_labels_are_declared(model):
    images, state, _ = observations(model, 2)
    batch = batch_of(images, state, *commands(6), torch.randn(6, SIZES.horizon, SIZES.action))
    other = {
        "skill": (batch.skill + 1) % SKILLS,
        "target": (batch.target + 1) % OBJECTS,
        "objects": batch.objects + 1,
        "boxes": batch.boxes + 0.1,
        "hand": batch.hand + 0.1,
        "hand_points": batch.hand_points / 2,
        "done": ~batch.done,
    }

    def loss(**labels) -> float:
        torch.manual_seed(0)
        with torch.inference_mode():
            return float(torch.stack(list(model.loss(batch._replace(**labels)).values())).sum())

    learned = {name for name, label in other.items() if loss(**{name: label}) != loss()}
    assert learned == set(getattr(model, "privileged", ()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unfitting_picture_size_is_refused(architecture):
    config = asdict(module_of(architecture).Config.tiny())
    with pytest.raises(ValueError, match=r"image_size must be a multiple of \d+, got 97"):
        build(architecture, config, SIZES.__class__(**(asdict(SIZES) | {"image_size": 97})))


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=f"unknown architecture 'rt1'; available: {', '.join(ARCHITECTURES)}"
    ):
        build("rt1", {}, SIZES)

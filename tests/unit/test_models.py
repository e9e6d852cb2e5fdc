"""Every architecture keeps the contract of `vla.models`."""

from dataclasses import asdict

import pytest
import torch
from torch import nn

from vla.envs.commands import COLOURS, GOALS
from vla.models import ARCHITECTURES, Batch, Sizes, build, module_of

pytestmark = [
    # What tracing looks at inside transformers, which warns of its own properties and of sizes it compares.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
SIZES = Sizes(cameras=2, image_size=96, context_length=16, vocabulary=49408, state=4, horizon=8, action=3)
END = 49407


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
    """Add what the simulator knows: goals in turn, and blocks that are small boxes in the pictures."""
    random = torch.Generator().manual_seed(2)
    corner = torch.rand(len(images), SIZES.cameras, len(COLOURS), 2, generator=random) * 0.8
    return Batch(
        images,
        state,
        ids,
        mask,
        actions,
        goal=torch.arange(len(ids)) % len(GOALS),
        blocks=torch.rand(len(images), len(COLOURS), 3, generator=random) - 0.5,
        boxes=torch.cat([corner, corner + 0.1], dim=-1),
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
    assert images.grad.abs().amax((1, 2, 3, 4)).min() > 0
    assert state.grad.abs().sum() > 0
    words = [value for value in model.parameters() if value.shape[0] == SIZES.vocabulary]
    assert len(words) == 1
    assert words[0].grad[ids[mask.bool()]].abs().sum(-1).min() > 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


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
    torch.testing.assert_close(loss["actions"], (answer - actions).square().mean())


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


@pytest.mark.parametrize("architecture", ["diffusion", "flow"])
def test_the_same_noise_gives_the_same_chunk_alone_and_in_a_batch(architecture):
    torch.manual_seed(0)
    model = build(architecture, asdict(module_of(architecture).Config.tiny()), SIZES).eval()
    assert model.stochastic
    images, state, noise = observations(model, 4)
    command, mask = model.encode_command(*commands(4))
    with torch.inference_mode():
        together = model.act(images, command, mask, state, noise)["actions"]
        again = model.act(images, command, mask, state, noise)["actions"]
        other = model.act(images, command, mask, state, noise.flip(0))["actions"]
        alone = model.act(*(part[2:3] for part in (images, command, mask, state, noise)))["actions"]
    assert torch.equal(again, together)
    assert (other - together).abs().max() > 1e-3
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=0)


def test_rows_of_a_batch_take_different_skills():
    torch.manual_seed(0)
    model = build("hierarchical", asdict(module_of("hierarchical").Config.tiny()), SIZES).eval()
    for layer in (model.perception.words.table, model.select[0], model.select[-1]):
        nn.init.normal_(layer.weight)
    answer = act(model, 32)
    assert len(answer["skill"].unique()) > 1
    assert answer["skill"].max() < len(model.extras["skill"].labels)
    assert (answer["skill_probability"] >= 1 / len(model.config.skills)).all()
    assert (answer["skill_probability"] <= 1).all()


def test_the_chosen_skill_alone_controls():
    torch.manual_seed(0)
    model = build("hierarchical", asdict(module_of("hierarchical").Config.tiny()), SIZES).eval()
    before = act(model, 8)
    chosen = int(before["skill"][0])
    with torch.no_grad():
        model.controllers.biases[-1][chosen] += 1
    after = act(model, 8)
    changed = (after["actions"] - before["actions"]).amax((1, 2))
    expected = (before["skill"] == chosen).float()
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)


def test_the_matched_box_lies_in_the_picture_and_tells_its_score():
    torch.manual_seed(0)
    model = build("grounded", asdict(module_of("grounded").Config.tiny()), SIZES).eval()
    answer = act(model, 5)
    left_top, right_bottom = answer["box"].chunk(2, dim=-1)
    assert (left_top >= 0).all()
    assert (right_bottom <= 1).all()
    assert (left_top < right_bottom).all()
    assert ((answer["box_score"] > 0) & (answer["box_score"] <= 1)).all()
    assert answer["box_camera"].max() < SIZES.cameras


def test_rt2_learns_action_tokens_that_decode_to_the_actions():
    torch.manual_seed(0)
    module = module_of("rt2")
    model = build("rt2", asdict(module.Config.tiny()), SIZES)
    images, state, _ = observations(model, 2)
    batch = batch_of(images, state, *commands(2), torch.rand(2, SIZES.horizon, SIZES.action) * 2 - 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        sum(model.loss(batch).values()).backward()
        optimiser.step()
    with torch.inference_mode():
        answer = model.eval().act(images, *model.encode_command(*commands(2)), state, torch.zeros(2, 0, 0))
    near = (answer["actions"] - batch.actions).abs() <= 1 / model.config.bins + 1e-6
    assert near.float().mean() > 0.9
    assert ((answer["confidence"] > 0) & (answer["confidence"] <= 1)).all()


def test_recomputing_saves_memory_and_changes_no_gradient():
    gradients, remembered = [], []
    for recompute in (True, False):
        torch.manual_seed(0)
        config = asdict(module_of("memory_efficient").Config.tiny()) | {"recompute": recompute}
        model = build("memory_efficient", config, SIZES).train()
        images, state, _ = observations(model, 2)
        batch = batch_of(images, state, *commands(2), torch.ones(2, SIZES.horizon, SIZES.action))
        kept = {}

        def remember(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = sum(model.loss(batch).values())
        remembered.append(sum(kept.values()))
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert remembered[0] < remembered[1] / 3
    for mine, its in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("image_size", [96, 64])
def test_clip_takes_a_local_checkpoint(tmp_path, image_size):
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = text | {"image_size": 96, "patch_size": 16, "num_hidden_layers": 2}
    torch.manual_seed(1)
    original = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision)).eval()
    original.save_pretrained(tmp_path)
    sizes = Sizes(**(asdict(SIZES) | {"image_size": image_size}))
    config = asdict(module_of("clip").Config.tiny()) | {"checkpoint": str(tmp_path)}
    model = build("clip", config, sizes).eval()
    assert (model.config.text_inner, model.config.vision_layers, model.config.checkpoint) == (24, 2, None)
    ids, _ = commands(3)
    with torch.inference_mode():
        expected = original.text_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(model.text(input_ids=ids).last_hidden_state, expected)
        images = torch.randn(1, 3, image_size, image_size)
        if image_size == 96:
            expected = original.vision_model(pixel_values=images).last_hidden_state
            torch.testing.assert_close(model.vision(pixel_values=images).last_hidden_state, expected)
    again = build("clip", asdict(model.config), sizes)
    again.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="reads 77 tokens of a vocabulary of 49408"):
        build("clip", config, Sizes(**(asdict(SIZES) | {"context_length": 78})))

"""What single architectures do beside the contract that `test_models` tests."""

from dataclasses import asdict
from typing import Any

import pytest
import torch
from test_models import SIZES, act, batch_of, commands, observations
from torch import nn

from vla.models import Sizes, build, module_of


@pytest.mark.parametrize("architecture", ["diffusion", "flow"])
def test_the_same_noise_gives_the_same_chunk_alone_and_in_a_batch(architecture):
    torch.manual_seed(0)
    model: Any = build(architecture, asdict(module_of(architecture).Config.tiny()), SIZES).eval()
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
    model: Any = build("hierarchical", asdict(module_of("hierarchical").Config.tiny()), SIZES).eval()
    for layer in (model.perception.text_encoder.embedding, model.skill_head[0], model.skill_head[-1]):
        nn.init.normal_(layer.weight)
    answer = act(model, 32)
    assert len(answer["skill"].unique()) > 1
    assert answer["skill"].max() < len(model.extras["skill"].labels)
    assert (answer["skill_probability"] >= 1 / len(model.config.skills)).all()
    assert (answer["skill_probability"] <= 1).all()


def test_the_chosen_skill_alone_controls():
    torch.manual_seed(0)
    model: Any = build("hierarchical", asdict(module_of("hierarchical").Config.tiny()), SIZES).eval()
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
    model: Any = build("grounded", asdict(module_of("grounded").Config.tiny()), SIZES).eval()
    answer = act(model, 5)
    left_top, right_bottom = answer["box"].chunk(2, dim=-1)
    assert (left_top >= 0).all()
    assert (right_bottom <= 1).all()
    assert (left_top < right_bottom).all()
    assert ((answer["box_score"] > 0) & (answer["box_score"] <= 1)).all()
    assert answer["box_camera"].max() < SIZES.cameras


def test_a_grounded_reads_a_sentence_alike_whichever_object_it_names():
    torch.manual_seed(0)
    model: Any = build("grounded", asdict(module_of("grounded").Config.tiny()), SIZES).eval()
    ids, mask = commands(2)
    ids[:, 0] = model.config.separator
    for names, alike in ((10.0, True), (-10.0, False)):
        with torch.inference_mode():
            model.name_head[-1].bias[1:] = names  # every word names an object, or none does
            read = model.read(ids[:, :6], torch.ones_like(mask[:, :6]))
        assert torch.equal(read.skills[0], read.skills[1]) is alike
        assert not torch.equal(read.objects[0], read.objects[1])


def test_a_grounded_learns_to_act_on_what_is_meant():
    torch.manual_seed(0)
    model: Any = build("grounded", asdict(module_of("grounded").Config.tiny()), SIZES).eval()
    images, state, noise = observations(model, 6)
    batch = batch_of(images, state, *commands(6), torch.randn(6, SIZES.horizon, SIZES.action))
    with torch.inference_mode():
        meant = model.skill_table[(batch.skill + 1) * batch.possible]
        rows = torch.stack([model.object_table[batch.target], meant, torch.ones_like(meant)], dim=1)
        answer = model.act(images, rows, torch.ones(6, 3, dtype=torch.bool), state, noise)["actions"]
        loss = model.loss(batch)
    torch.testing.assert_close(loss["actions"], (answer - batch.actions).square().mean())


def test_rt2_learns_action_tokens_that_decode_to_the_actions():
    torch.manual_seed(0)
    module = module_of("rt2")
    model: Any = build("rt2", asdict(module.Config.tiny()), SIZES)
    images, state, _ = observations(model, 2)
    batch = batch_of(images, state, *commands(2), torch.rand(2, SIZES.horizon, SIZES.action) * 2 - 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        optimiser.zero_grad()
        torch.stack(list(model.loss(batch).values())).sum().backward()
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
        model: Any = build("memory_efficient", config, SIZES).train()
        images, state, _ = observations(model, 2)
        batch = batch_of(images, state, *commands(2), torch.ones(2, SIZES.horizon, SIZES.action))
        kept = {}

        def remember(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = torch.stack(list(model.loss(batch).values())).sum()
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
    model: Any = build("clip", config, sizes).eval()
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


def delayed_flow() -> Any:
    torch.manual_seed(0)
    config = asdict(module_of("flow").Config.tiny()) | {"max_delay": 3}
    return build("flow", config, SIZES).eval()


def test_flow_plans_on_from_what_is_given():
    model = delayed_flow()
    assert model.max_delay == 3
    images, state, noise = observations(model, 4)
    prefix = torch.rand(4, SIZES.horizon, SIZES.action) * 2 - 1
    inputs = (images, *model.encode_command(*commands(4)), state, noise)
    delay = torch.tensor([0, 3, 1, 0])
    with torch.inference_mode():
        plain, zero = (model.act(*inputs, *given)["actions"] for given in ((), (prefix, delay * 0)))
        mixed = model.act(*inputs, prefix, delay)["actions"]
        other = model.act(*inputs, prefix.flip(1), delay)["actions"]
    assert torch.equal(zero, plain)
    assert torch.equal(mixed[[0, 3]], plain[[0, 3]])
    assert torch.equal(mixed[1, :3], prefix[1, :3])
    assert torch.equal(mixed[2, :1], prefix[2, :1])
    assert (mixed[1, 3:] - plain[1, 3:]).abs().max() > 1e-3
    assert (mixed[1, 3:] - other[1, 3:]).abs().max() > 1e-3
    traced = torch.jit.trace_module(
        model,
        {"act": (*(part[:2] for part in inputs), prefix[:2], delay[:2])},
        strict=False,
        check_trace=False,
    )
    torch.testing.assert_close(traced.act(*inputs, prefix, delay)["actions"], mixed, atol=1e-5, rtol=0)


def test_flow_learns_nothing_from_what_is_given():
    model = delayed_flow()
    images, state, _ = observations(model, 2)
    actions = torch.rand(2, SIZES.horizon, SIZES.action)
    times, velocities = [], []
    model.time_features.register_forward_hook(lambda _module, inputs, _output: times.append(inputs[0]))

    def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        velocities.append(output)

    model.velocity_head.register_forward_hook(keep)
    batch = batch_of(images, state, *commands(2), actions)
    for _ in range(8):
        model.loss(batch)["velocity"].backward()
    given = torch.stack(times) == 1
    gradients = torch.stack([velocity.grad for velocity in velocities])
    assert set(given.sum(-1).flatten().tolist()) == {0, 1, 2, 3}
    assert (gradients[given] == 0).all()
    assert (gradients[~given] != 0).any(-1).all()


def test_flow_with_nothing_left_to_plan_is_refused():
    config = asdict(module_of("flow").Config.tiny())
    with pytest.raises(ValueError, match="max_delay must be less than 8 steps, got 8"):
        build("flow", config | {"max_delay": 8}, SIZES)
    with pytest.raises(ValueError, match="max_delay must be 0 or more, got -1"):
        build("flow", config | {"max_delay": -1}, SIZES)

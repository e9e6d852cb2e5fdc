"""Every kind of policy that a spec can describe, from the request's fields to the actions that leave."""

import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from action_spaces import space
from kinds import FRONT, STATE, WRIST, policy, raw
from torch import Tensor

from vla_runtime.errors import RequestError, SpecError
from vla_runtime.observation import Row
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import Dimension, Safety, Tokenizer, Vector


def actions(policy: Policy, row: Row) -> np.ndarray:
    (answer,) = policy.infer([row])
    assert isinstance(answer, Answer), answer.body()
    return answer.chunk.actions


def refusal(policy: Policy, row: Row) -> tuple[int, str | None, str]:
    (answer,) = policy.infer([row])
    assert isinstance(answer, RequestError), answer
    return answer.status, answer.field, answer.message


def chunk(first: Tensor, second: Tensor) -> Tensor:
    """[B], [B] -> [B, 2, 2]: `first` is x of both steps and `second` the gripper's."""
    return torch.stack([first, second], -1)[:, None].expand(-1, 2, -1)


# ---- history


def steps(front: Tensor, wrist: Tensor, state: Tensor) -> Tensor:
    """Tell the steps apart: x from the oldest front picture, the gripper from the newest wrist and state."""
    assert (front.shape[1:], wrist.shape[1:], state.shape[1:]) == ((2, 3, 4, 4), (2, 3, 2, 6), (2, 2))
    return chunk(front[:, 0].mean((1, 2, 3)) * 0.02, wrist[:, 1].mean((1, 2, 3)) * state[:, 1, 1])


@pytest.fixture
def remembering(tmp_path: Path) -> Policy:
    inputs = ("image.front", "image.wrist", "state")
    return policy(steps, tmp_path, inputs, cameras=(FRONT, WRIST), state=STATE, history=2)[0]


TWO_STEPS: dict[str, object] = {
    "image.front.0": raw(255),
    "image.front.1": raw(0),
    "image.wrist.0": raw(0, WRIST),
    "image.wrist.1": raw(204, WRIST),
    "state": [[0.5, 0.0], [0.1, 0.5]],
}


def test_history_is_oldest_first(remembering: Policy) -> None:
    np.testing.assert_allclose(actions(remembering, TWO_STEPS), [[0.02, 0.4]] * 2, atol=1e-6)


def test_history_in_a_form_is_text_and_files(remembering: Policy) -> None:
    assert actions(remembering, TWO_STEPS | {"state": b"[[0.5, 0], [0.1, 0.5]]"})[0, 1] == pytest.approx(0.4)


EACH = "a JSON array of 2 states, oldest first, each a JSON array of 2 numbers: x, opening"


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (
            {"image.front.1": None},
            (400, "image.front.1", "needs the picture of camera 'front' as JPEG, PNG or WebP"),
        ),
        (
            {"image.wrist.2": raw(0, WRIST)},
            (
                400,
                "image.wrist.2",
                "this policy takes no such field; it takes: image.front.0, image.front.1, image.wrist.0, "
                "image.wrist.1, state, previous, seed, deadline_ms",
            ),
        ),
        (
            {"image.wrist.0": raw(0)},
            (422, "image.wrist.0", "must have 6 x 2 pixels, got 4 x 4"),
        ),
        ({"state": [[0.5, 0.0]]}, (422, "state", f"must be {EACH}; got 1 states")),
        ({"state": [0.5, 0.0]}, (422, "state", f"must be {EACH}; got a number")),
        ({"state": [[0, 0], [0]]}, (422, "state", f"must be {EACH}; got 1 numbers")),
    ],
)
def test_history_that_is_incomplete_is_refused(
    remembering: Policy, change: dict[str, object], refused: tuple
) -> None:
    row = {name: value for name, value in (TWO_STEPS | change).items() if value is not None}

    assert refusal(remembering, row) == refused


def test_a_lone_camera_need_not_be_named(tmp_path: Path) -> None:
    alone, _ = policy(
        lambda front: chunk(front[:, 0, 0, 0, 0] * 0.02, front[:, 1, 0, 0, 0]),
        tmp_path,
        ("image.front",),
        history=2,
    )
    short, long = "image.0", "image.front.0"

    for row in (
        {"image.0": raw(255), "image.1": raw(102)},
        {"image.front.0": raw(255), "image.front.1": raw(102)},
    ):
        np.testing.assert_allclose(actions(alone, row), [[0.02, 0.4]] * 2, atol=1e-6)
    both = {short: raw(0), long: raw(0), "image.1": raw(0)}
    assert refusal(alone, both) == (400, short, f"sent beside {long!r}; send one of them")


# ---- commands


def seeing(front: Tensor) -> Tensor:
    return chunk(front[:, 0, 0, 0] * 0, front[:, 0, 0, 0])


def obeying(front: Tensor, words: Tensor) -> Tensor:
    return chunk(words[:, 0] / 1000, front.mean((1, 2, 3)))


def test_a_policy_without_a_command_takes_none(tmp_path: Path) -> None:
    silent, module = policy(
        lambda front: chunk(front[:, 0, 0, 0] * 0, front[:, 0, 0, 0]), tmp_path, ("image.front",)
    )

    assert actions(silent, {"image": raw(51)})[0, 1] == pytest.approx(0.2)
    assert module.commands == []
    assert refusal(silent, {"image": raw(51), "command": "go"}) == (
        400,
        "command",
        "this policy takes no such field; it takes: image, previous, seed, deadline_ms",
    )


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({"context_length": 4}, [2, 3, 0, 0]),
        ({"context_length": 4, "side": "left"}, [0, 0, 2, 3]),
        ({"context_length": 4, "padding": "longest"}, [2, 3]),
        ({"context_length": 6, "template": "In: {command}\nOut:"}, [5, 2, 3, 6, 0, 0]),
    ],
)
def test_template_and_padding(tmp_path: Path, fields: dict, ids: list[int]) -> None:
    tokenizer = Tokenizer(**{"file": "words.json", "pad_id": 0} | fields)
    told, module = policy(obeying, tmp_path, ("image.front", "command.words"), tokenizer=tokenizer)

    answer = actions(told, {"image": raw(0), "command": "go left"})

    assert module.commands[0].tolist() == [ids]
    assert answer[0, 0] == pytest.approx(sum(ids) / 1000)


def test_a_command_that_is_too_long_in_its_template_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(file="words.json", context_length=4, pad_id=0, template="In: {command} Out:")
    told, _ = policy(obeying, tmp_path, ("image.front", "command.words"), tokenizer=tokenizer)

    assert refusal(told, {"image": raw(0), "command": "go left right"}) == (
        422,
        "command",
        "has 5 tokens; the policy reads at most 4",
    )


def test_the_state_in_the_prompt(tmp_path: Path) -> None:
    """A state of several robots in one batch: each command is encoded with its own."""
    template = "In: {command} Out: {state}"
    tokenizer = Tokenizer(
        file="words.json", context_length=8, pad_id=0, template=template, state_bins=4, tidy=True
    )
    told, module = policy(
        obeying, tmp_path, ("image.front", "command.words"), tokenizer=tokenizer, state=STATE
    )
    states = ([0.5, 1.0], [-1.2, 1.0], [0.5, 1.0])

    told.infer([{"image": raw(0), "command": " go_left\n", "state": state} for state in states])

    high, low = [5, 2, 3, 6, 8, 8, 0, 0], [5, 2, 3, 6, 7, 8, 0, 0]
    assert module.commands[0].tolist() == [high, low]
    told.infer([{"image": raw(0), "command": "{state}", "state": states[0]}])
    assert module.commands[1].tolist() == [[5, 9, 6, 8, 8, 0, 0, 0]]
    assert told.command_uses == (1, 3)


def test_a_prompt_with_a_state_needs_one(tmp_path: Path) -> None:
    tokenizer = Tokenizer(file="words.json", context_length=8, pad_id=0, template="{command} {state}")
    inputs = ("image.front", "command.words")

    with pytest.raises(
        SpecError, match=r"^the tokenizer's template names the state, and the policy has none$"
    ):
        policy(obeying, tmp_path, inputs, tokenizer=tokenizer)
    with pytest.raises(SpecError, match=r"^the tokenizer's template names one state, and history is 2$"):
        policy(obeying, tmp_path, inputs, tokenizer=tokenizer, state=STATE, history=2)


def test_only_commands_of_one_length_share_a_forward_pass(tmp_path: Path) -> None:
    tokenizer = Tokenizer(file="words.json", context_length=4, pad_id=0, padding="longest")
    told, module = policy(obeying, tmp_path, ("image.front", "command.words"), tokenizer=tokenizer)
    rows = [
        {"image": raw(0), "command": command} for command in ("go", "go left", "left", "go right", "go left")
    ]
    alone = [actions(told, row) for row in rows]
    module.acts.clear()
    module.commands.clear()

    together = told.infer(rows)

    for one, answer in zip(alone, together, strict=True):
        assert isinstance(answer, Answer)
        np.testing.assert_array_equal(answer.chunk.actions, one)
    # Two commands of one token, then three of two, padded to a bucket of four.
    assert [len(front) for front, _ in module.acts] == [2, 4]


# ---- numbers


def test_an_action_relative_to_the_state_leaves_as_an_absolute_one(tmp_path: Path) -> None:
    x = Dimension(name="x", unit="m", low=-1, high=1, meaning="absolute", state="x", relative=True)
    gripper = Dimension(name="gripper", unit="1", low=0, high=1, meaning="absolute", state="opening")
    relative, _ = policy(
        lambda front, state: chunk(state[:, 0] * 0 + 0.25, state[:, 1]),
        tmp_path,
        ("image.front", "state"),
        state=STATE,
        action=space(normalisation="identity", dimensions=(x, gripper)),
    )

    np.testing.assert_allclose(
        actions(relative, {"image": raw(0), "state": [0.5, 0.75]}), [[0.75, 0.75]] * 2, atol=1e-6
    )


def test_padded_vectors_and_noise_of_its_own_shape(tmp_path: Path) -> None:
    """As pi0: everything 32 wide inside, the robot's own width outside."""

    def wide(front: Tensor, state: Tensor, noise: Tensor) -> Tensor:
        assert (state.shape[1:], noise.shape[1:]) == ((32,), (2, 32))
        assert not state[:, 2:].any()
        return torch.cat([state[:, None, :2].expand(-1, 2, -1) * 0.01, noise[..., 2:]], -1)

    padded = Vector(
        dimensions=STATE.dimensions, normalisation="identity", statistics=STATE.statistics, padded_to=32
    )
    made, module = policy(
        wide,
        tmp_path,
        ("image.front", "state", "noise"),
        state=padded,
        noise=(2, 32),
        action=space(normalisation="identity", padded_to=32),
    )
    row = {"image": raw(0), "state": [1.0, 0.5]}

    np.testing.assert_allclose(actions(made, row), [[0.01, 0.005]] * 2, atol=1e-7)
    actions(made, row | {"seed": 7})
    actions(made, row | {"seed": 7})
    noises = [inputs[2] for inputs in module.acts]
    assert not torch.equal(noises[0], noises[1])
    assert torch.equal(noises[1], noises[2])


def test_the_previous_action_limits_the_first_of_the_next_chunk(tmp_path: Path) -> None:
    still = Safety(max_step=(None, 0.25))
    made, _ = policy(seeing, tmp_path, ("image.front",), safety=still)
    row = {"image": raw(255)}

    assert actions(made, row)[:, 1].tolist() == [1, 1]
    assert actions(made, row | {"previous": [0.0, 0.5]})[:, 1].tolist() == [0.75, 1]
    assert actions(made, row | {"previous": b"[0, 0.5]"})[:, 1].tolist() == [0.75, 1]


def test_a_chunk_of_another_shape_is_refused(tmp_path: Path) -> None:
    short, _ = policy(lambda front: front.new_zeros(len(front), 1, 2), tmp_path, ("image.front",))

    assert refusal(short, {"image": raw(0)}) == (
        503,
        None,
        "the policy returns actions (1, 2) instead of (2, 2)",
    )


def test_an_answer_that_became_stale_while_it_was_computed_is_none(tmp_path: Path) -> None:
    def slow(front: Tensor) -> Tensor:
        time.sleep(0.08)
        return seeing(front)

    late, _ = policy(slow, tmp_path, ("image.front",))
    rows = [{"image": raw(0), "deadline_ms": 60}, {"image": raw(0), "deadline_ms": 5000}]

    stale, fresh = late.infer(rows)

    assert isinstance(stale, RequestError)
    assert (stale.status, stale.message) == (504, "expired while the request was computed")
    assert isinstance(fresh, Answer)


def test_the_way_from_a_row_to_the_module_is_eight_frames_at_most(tmp_path: Path) -> None:
    seen: list[str] = []

    def look(front: Tensor) -> Tensor:
        ours = [frame for frame in traceback.extract_stack() if "vla_runtime" in frame.filename]
        seen[:] = [f"{Path(frame.filename).stem}.{frame.name}" for frame in ours]
        return seeing(front)

    actions(policy(look, tmp_path, ("image.front",))[0], {"image": raw(0)})

    # The handler's `handle` before them, the module's `act` after.
    assert seen == [
        "policy.infer",
        "policy._compute",
        "policy._run",
        "artifact.__call__",
        "artifact.__call__",
        "artifact._act",
    ]

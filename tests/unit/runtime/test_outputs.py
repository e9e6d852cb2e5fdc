"""What an artifact returns, row by row, and what it computes while it warms up."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from action_spaces import space, spec
from kinds import FRONT, policy, raw
from torch import Tensor

from vla_runtime.artifact import Artifact
from vla_runtime.errors import RequestError
from vla_runtime.images import Limits
from vla_runtime.observation import decode
from vla_runtime.policy import Answer, Policy
from vla_runtime.record import pictures
from vla_runtime.spec import Extra, PolicySpec
from vla_runtime.staging import Inputs


class Talkative:
    """Returns everything that an artifact may, each part told from the grey of its row's picture."""

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        del attention_mask
        return (input_ids,)

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        grey = inputs[0].flatten(1).mean(1)  # [B]
        grid = torch.arange(6.0).reshape(1, 1, 2, 3)
        return {
            "attention": grey[:, None, None, None] + grid,
            "unused": grey,
            "skill": (10 * grey).round().long(),
            "confidence": grey / 2,
            "actions": grey[:, None, None] + torch.arange(4.0).reshape(2, 2),
            "place": torch.stack([grey, -grey], -1),
        }


OUTPUTS = ("attention", "skill", "confidence", "actions", "place")


def talkative(outputs: tuple[str, ...] = OUTPUTS) -> PolicySpec:
    extras = {name: Extra() for name in ("place", "skill") if name in outputs}
    tiny = spec(space(normalisation="identity"))
    artifact = msgspec.structs.replace(
        tiny.artifact, buckets=(1, 4), outputs=outputs, inputs=("image.front",), command=(), extras=extras
    )
    return msgspec.structs.replace(tiny, artifact=artifact, tokenizer=None, cameras=(FRONT,))


def row(grey: int) -> Inputs:
    none = np.zeros(0, np.int64)
    pixels = np.full((3, 4, 4), grey, np.uint8)
    return Inputs({"image.front": pixels}, none, none, np.zeros(0), np.zeros(0), np.inf)


def test_every_output_of_a_row_is_its_own() -> None:
    artifact = Artifact(Talkative(), talkative(), torch.device("cpu"))

    found = artifact([row(grey) for grey in (51, 102, 204)])

    assert artifact.computed == len(found) == 3
    for outputs, grey in zip(found, (0.2, 0.4, 0.8), strict=True):
        np.testing.assert_allclose(outputs.actions, grey + np.arange(4).reshape(2, 2), atol=1e-6)
        assert outputs.confidence == pytest.approx(grey / 2)
        assert outputs.attention is not None
        np.testing.assert_allclose(outputs.attention, grey + np.arange(6).reshape(1, 2, 3), atol=1e-6)
        assert set(outputs.extras) == {"place", "skill"}
        np.testing.assert_allclose(outputs.extras["place"], [grey, -grey], atol=1e-6)
        assert outputs.extras["skill"] == round(10 * grey)
        assert outputs.extras["skill"].dtype == np.int64  # an index is answered as 2, and not as 2.0


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what is copied from the device."""
    found, cpu = list[torch.Size](), Tensor.cpu

    def counted(self: Tensor) -> Tensor:
        found.append(self.shape)
        return cpu(self)

    monkeypatch.setattr(Tensor, "cpu", counted)
    return found


def test_all_outputs_leave_the_device_in_one_copy(copies: list[torch.Size]) -> None:
    Artifact(Talkative(), talkative(), torch.device("cpu"))([row(51), row(102)])

    assert copies == [(4, 4 + 6 + 2 + 1 + 1)]


def test_attention_stays_on_the_device_unless_it_is_asked_for(copies: list[torch.Size]) -> None:
    made = Policy(talkative(), None, Artifact(Talkative(), talkative(), torch.device("cpu")), threads=1)

    (plain,) = made.infer([{"image": raw(51)}])
    (explained,) = made.infer([{"image": raw(51)}], attention=True)

    assert isinstance(plain, Answer), plain
    assert isinstance(explained, Answer), explained
    assert plain.chunk.attention is None
    assert explained.chunk.attention is not None
    assert explained.chunk.attention.shape == (1, 2, 3)
    assert copies == [(1, 4 + 2 + 1 + 1), (1, 4 + 6 + 2 + 1 + 1)]


def test_what_is_not_declared_is_not_there() -> None:
    (outputs,) = Artifact(Talkative(), talkative(("actions",)), torch.device("cpu"))([row(51)])

    assert (outputs.confidence, outputs.attention, outputs.extras) == (None, None, {})


def test_warming_up_computes_every_batch_size_with_new_commands(tmp_path: Path) -> None:
    made, module = policy(
        lambda front, words: (front.mean((1, 2, 3)) + words[:, 0])[:, None, None].expand(-1, 2, 2) * 0,
        tmp_path,
        ("image.front", "command.words"),
    )

    made.warm_up()

    sizes = [len(inputs[0]) for inputs in module.acts]
    assert sizes == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert [len(ids) for ids in module.commands][:3] == [1, 2, 4]


def test_a_policy_that_is_warm_answers_without_a_state(tmp_path: Path) -> None:
    """One that reads an empty state all the same."""
    made, module = policy(
        lambda front, state: (front.mean((1, 2, 3)) + state.sum(1))[:, None, None].expand(-1, 2, 2),
        tmp_path,
        ("image.front", "state"),
    )
    made.warm_up()

    (answer,) = made.infer([{"image": raw(0)}])

    assert isinstance(answer, Answer), answer
    assert {inputs[1].shape[1] for inputs in module.acts} == {0}


def two_steps(tmp_path: Path, limits: Limits | None = None) -> Policy:
    return policy(
        lambda front: front.mean((1, 2, 3, 4))[:, None, None].expand(-1, 2, 2) * 0,
        tmp_path,
        ("image.front",),
        history=2,
        threads=1,
        limits=limits,
    )[0]


def test_the_newest_picture_is_shown(tmp_path: Path) -> None:
    (answer,) = two_steps(tmp_path).infer([{"image.front.0": raw(10), "image.front.1": raw(20)}])

    assert isinstance(answer, Answer), answer
    assert answer.inputs is not None
    (shown,) = pictures(answer.inputs, two_steps(tmp_path).spec)
    assert shown.tolist() == np.full((3, 4, 4), 20).tolist()


def test_each_picture_of_a_history_has_its_share_of_the_time(tmp_path: Path) -> None:
    request: dict[str, object] = {"image.front.0": raw(10), "image.front.1": raw(20)}
    cost = decode(request, two_steps(tmp_path).spec, 0.0).cost_ms  # of two pictures
    # Four requests, two pictures each, by one thread: just enough for a batch.
    enough = two_steps(tmp_path, Limits(batch_decode_ms=4.01 * cost / 2))

    assert all(isinstance(answer, Answer) for answer in enough.infer([request] * 4))
    scarce = two_steps(tmp_path, Limits(batch_decode_ms=3.9 * cost / 2))
    assert sum(isinstance(answer, RequestError) for answer in scarce.infer([request] * 4)) == 1

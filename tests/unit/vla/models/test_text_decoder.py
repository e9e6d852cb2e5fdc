"""Text of `rt2`: learned, greedy, the same alone and in batches, in a trace and with nothing kept."""

from dataclasses import asdict, replace

import pytest
import torch
from test_models import SIZES, act, batch_of, commands, observations
from torch import nn

from vla.models import build, module_of

PIECES = ("", " a", " b", " c", " d", " e")
TEXTS = torch.tensor([[1, 2, 3, 0, 0, 0], [5, 0, 0, 0, 0, 0], [4, 4, 4, 4, 4, 4], [0, 0, 0, 0, 0, 0]])

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


def made(**values):
    torch.manual_seed(0)
    config = asdict(module_of("rt2").Config.tiny()) | {"pieces": PIECES, "text_tokens": 6} | values
    model = build("rt2", config, SIZES)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def labelled(rows=4):
    model = made()
    images, state, _ = observations(model, rows)
    batch = batch_of(images, state, *commands(rows), torch.rand(rows, SIZES.horizon, SIZES.action) * 2 - 1)
    return batch._replace(text=TEXTS[torch.arange(rows) % 4])


@pytest.fixture(scope="module")
def trained():
    model, batch = made(), labelled()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        torch.stack(list(model.loss(batch).values())).sum().backward()
        optimiser.step()
    return model.eval()


def test_what_was_learned_is_said_up_to_its_end(trained):
    assert torch.equal(act(trained, 4)["text"], TEXTS)


def test_rows_say_the_same_alone_as_in_a_batch_and_in_a_trace(trained):
    images, state, noise = observations(trained, 2, 5)
    with torch.no_grad():
        inputs = {
            "encode_command": commands(2, 5),
            "act": (images, *trained.encode_command(*commands(2, 5)), state, noise),
        }
        traced = torch.jit.trace_module(trained, inputs, strict=False, check_trace=False)
    together = act(trained, 12, 3)["text"]
    assert len(together.unique(dim=0)) > 2
    assert torch.equal(act(trained, 12, 3, traced)["text"], together)
    images, state, noise = observations(trained, 12, 3)
    ids, mask = commands(12, 3)
    for row in (0, 5, 11):
        part = slice(row, row + 1)
        with torch.inference_mode():
            command = trained.encode_command(ids[part], mask[part])
            alone = trained.act(images[part], *command, state[part], noise[part])
        assert torch.equal(alone["text"], together[part])


def test_each_word_is_the_one_that_the_loss_likes_best():
    """What is kept while decoding changes nothing: the loss computes all words at once, from nothing kept."""
    model, batch = made().eval(), labelled(2)
    with torch.inference_mode():
        command = model.encode_command(batch.input_ids, batch.attention_mask)
        said = model.act(batch.images, *command, batch.state, torch.zeros(2, 0, 0))["text"]

        def surprise(place: int, word: int) -> float:
            text = said[:, : place + 1].clone()
            text[0, place] = word
            return float(model.loss(batch._replace(text=text))["text"])

        length = int((said[0] != 0).sum())
        for place in range(min(length + 1, 6)):
            guesses = [surprise(place, word) for word in range(len(PIECES))]
            assert guesses.index(min(guesses)) == said[0, place]
            assert max(guesses) > min(guesses) + 1e-3


def test_actions_are_the_same_with_text_and_without(trained):
    silent = build("rt2", asdict(replace(trained.config, text_tokens=0)), SIZES).eval()
    silent.load_state_dict(trained.state_dict())
    told, untold = act(trained, 5), act(silent, 5)
    assert "text" not in untold
    assert silent.extras == {}
    for name in ("actions", "confidence", "attention"):
        assert torch.equal(told[name], untold[name])


def test_looks_are_drawn_to_the_objects(trained):
    batch = labelled()
    with torch.inference_mode():
        before, after = made().loss(batch)["looks"], trained.loss(batch)["looks"]
    assert after < before / 2
    assert trained.privileged == ("text", "boxes")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pieces": (" a", " b")}, "pieces need an empty one"),
        ({"pieces": ()}, "text_tokens is 6, and there are no pieces to say"),
        ({"text_tokens": 17}, "text_tokens must be 16 at most, got 17"),
    ],
)
def test_a_text_that_cant_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        made(**values)

"""Every kind of policy that the runtime claims, exported and served by one TorchServe over HTTP."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import requests
import tokenizers
import torch
from making import STARTUP_TIMEOUT_S, running, write_checkpoint
from PIL import Image
from torch import Tensor, nn

from export.export import Options, archived
from export.native import make
from export.source import Eager, Observation, Source
from server.process import TorchServe, free_port
from vla_runtime.spec import (
    Camera,
    ContinuousSpace,
    Dimension,
    DiscreteSpace,
    Rotation,
    Safety,
    Statistics,
    Tokenizer,
    Vector,
)

Tensors = dict[str, Tensor]
QUATERNION = ("qx", "qy", "qz", "qw")
PACKAGE = """
import torch
from torch import nn


class Branching(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.full((2,), float(gain)))

    def act(self, images, command, state, noise):
        grey = images["front"].mean((1, 2, 3))  # [B]
        # A branch on values: what no tracer takes.
        actions = [self.gain * g if g > 0.5 else -self.gain * g for g in grey]
        return {"actions": torch.stack(actions).unsqueeze(1)}


def build(gain):
    return Branching(gain)
"""


class Seeing(nn.Module):
    """The brightness of the pictures, the state and the noise, in the order that each test reads."""

    def __init__(self, answer: Any, words: int = 0) -> None:
        super().__init__()
        self.answer = answer
        if words:
            self.words = nn.Embedding(words, 3)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask.unsqueeze(-1)
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        return {"mean": mean, "length": attention_mask.sum(1)}

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        return self.answer(images, command, state, noise)


def grey(value: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.full((size[1], size[0], 3), value, np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def dimensions(*names: str, bound: float = 2.0, **more: Any) -> tuple[Dimension, ...]:
    return tuple(Dimension(name=name, unit="1", low=-bound, high=bound, **more) for name in names)


def space(dims: tuple[Dimension, ...], **more: Any) -> ContinuousSpace:
    given = {"normalisation": "identity", "statistics": Statistics(), "horizon": 2, "control_hz": 10.0} | more
    return ContinuousSpace(dimensions=dims, **given)


CAMERA = Camera(name="front", width=8, height=8, resize="none", values="zero_to_one")


def remembering() -> Source:
    """Two observation steps, no command, noise 5 wide, a joint relative to the state, padded to 8."""

    def answer(images: Tensors, _command: Any, state: Tensor, noise: Tensor) -> Tensors:
        old, new = images["front"].mean((2, 3, 4)).unbind(1)  # [B] each
        moved = torch.stack([new - old, 10 * (new - old), state[:, -1, 0], noise[:, 0, 4]], -1)  # [B, 4]
        actions = torch.cat([moved, state[:, 0, :1] + 3, moved[:, :3] * 0], -1)  # [B, 8]
        return {"actions": actions.unsqueeze(1).repeat(1, 2, 1)}

    joint = Dimension(
        name="joint", unit="rad", low=-2, high=2, meaning="absolute", state="joint", relative=True
    )
    lift = Dimension(name="lift", unit="m", low=-20, high=20, meaning="absolute", state="joint")
    return Source(
        model=Seeing(answer).eval(),
        name="remembering",
        cameras=(CAMERA,),
        history=2,
        state=Vector(
            dimensions=(Dimension(name="joint", unit="rad", low=-3, high=3),),
            normalisation="mean_std",
            statistics=Statistics(mean=(1.0,), std=(0.5,)),
            padded_to=4,
        ),
        noise=(2, 5),
        action=space((joint, lift, *dimensions("echo", "drawn")), padded_to=8, passthrough=("echo",)),
        safety=Safety(max_step=(None, 0.5, None, None)),
        example=Observation({"front": (grey(10), grey(20))}, state=((0.0,), (0.5,))),
    )


def turning() -> Source:
    """A rate and a quaternion; low confidence is held: no rate, and the rotation that is declared."""

    def answer(images: Tensors, _command: Any, _state: Tensor, _noise: Tensor) -> Tensors:
        bright = images["front"].mean((1, 2, 3))
        actions = torch.stack([bright, *[bright + 0.1] * 3, bright + 1], -1)
        return {"actions": actions.unsqueeze(1).repeat(1, 2, 1), "confidence": bright}

    turn = space(
        (*dimensions("rate", meaning="velocity"), *dimensions(*QUATERNION)),
        rotations=(Rotation(kind="quaternion", dimensions=QUATERNION),),
    )
    return Source(
        model=Seeing(answer).eval(),
        name="turning",
        cameras=(CAMERA,),
        action=turn,
        safety=Safety(min_confidence=0.5, hold_action=(None, 0.0, 0.0, 0.0, 1.0)),
        example=Observation({"front": grey(200)}),
    )


def choosing(folder: Path) -> Source:
    """Named actions; only commands of equal length share a forward pass; a template of its own."""
    words = ["[unknown]", "do", ":", "lift", "drop", "now", "please"]
    reader = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unknown]")
    )
    reader.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    reader.save(str(folder / "words.json"))

    def answer(_images: Any, command: Tensors, _state: Tensor, _noise: Tensor) -> Tensors:
        length = command["length"].float().unsqueeze(-1)
        logits = torch.cat([command["mean"], length], -1)
        return {"logits": logits.unsqueeze(1)}

    torch.manual_seed(0)
    return Source(
        model=Seeing(answer, len(words)).eval(),
        name="choosing",
        cameras=(CAMERA,),
        tokenizer=Tokenizer(
            file="words.json", context_length=8, pad_id=0, padding="longest", template="do : {command}"
        ),
        tokenizer_file=folder / "words.json",
        action=DiscreteSpace(vocabulary=("lift", "drop", "wait", "stop"), horizon=1, control_hz=1.0),
        example=Observation({"front": grey(1)}, "lift now"),
    )


def branching(folder: Path) -> Source:
    """An eager module with a branch; what leaves its bounds is rejected."""
    package = folder / "branching"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    scope: dict[str, Any] = {}
    exec(PACKAGE, scope)
    return Source(
        model=scope["build"](1.5).eval(),
        name="branching",
        cameras=(CAMERA,),
        action=space(dimensions("a", "b", bound=1.0), horizon=1),
        safety=Safety(mode="reject"),
        eager=Eager(package, "branching:build", {"gain": 1.0}),
        example=Observation({"front": grey(100)}),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("kinds")
    sources = [remembering(), turning(), choosing(folder), branching(folder)]
    sources.append(make(write_checkpoint(folder / "rt2", "rt2")))
    archives = []
    for source in sources:
        output = folder / f"{source.name}.mar"
        format_ = "eager" if source.eager else "torchscript"
        archived(source, Options("a test", output, buckets=(1, 2, 4), format=format_))
        archives.append(output)
    with TorchServe(archives, port=free_port(), startup_timeout_s=2 * STARTUP_TIMEOUT_S) as server:
        running.append(server)
        yield server
        running.remove(server)


def ask(server: TorchServe, name: str, images: dict[str, np.ndarray], **fields: Any) -> requests.Response:
    files = {field: png(pixels) for field, pixels in images.items()}
    data = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    return requests.post(f"{server.url}/predictions/{name}", files=files, data=data, timeout=30)


def test_history_relative_actions_steps_noise_and_padding(server: TorchServe) -> None:
    steps = {"image.0": grey(51), "image.1": grey(102)}  # 0.2, then 0.4

    answer = ask(server, "remembering", steps, state=[[1.0], [1.5]], seed=7)

    assert answer.status_code == 200, answer.text
    drawn = np.random.default_rng(7).standard_normal((2, 5), np.float32)[0, 4]
    # joint: 0.2 added to the newest state; lift: 2.0, stopped within half a metre of 1.5 and again of that;
    # echo: the newest state, normalised; drawn: the noise, in its bounds.
    row = [1.7, 2.0, 1.0, np.clip(drawn, -2, 2)]
    np.testing.assert_allclose(answer.json()["actions"], [row, row], atol=1e-5)
    missing = ask(server, "remembering", {"image.0": grey(1)}, state=[[1.0], [1.5]])
    assert (missing.status_code, missing.json()["error"]["field"]) == (400, "image.1")
    flat = ask(server, "remembering", steps, state=[1.0])
    assert (flat.status_code, flat.json()["error"]["field"]) == (422, "state")
    told = ask(server, "remembering", steps, state=[[1.0], [1.5]], command="go")
    assert (told.status_code, told.json()["error"]["field"]) == (400, "command")


def test_a_picture_of_another_size_is_refused_where_none_is_resized(server: TorchServe) -> None:
    answer = ask(server, "turning", {"image": grey(255, (9, 8))})

    assert (answer.status_code, answer.json()["error"]["message"]) == (
        422,
        "must have 8 x 8 pixels, got 9 x 8",
    )


def test_quaternions_leave_valid_and_doubt_is_held(server: TorchServe) -> None:
    sure, doubtful = ask(server, "turning", {"image": grey(255)}), ask(server, "turning", {"image": grey(25)})

    action = np.array(sure.json()["actions"][0])
    assert np.linalg.norm(action[1:]) == pytest.approx(1, abs=1e-6)
    assert action[4] / action[1] == pytest.approx(2 / 1.1, rel=1e-5)
    assert sure.json()["safety"] == {"status": "ok", "violations": []}
    assert doubtful.json()["actions"] == [[0, 0, 0, 0, 1]] * 2
    assert doubtful.json()["safety"]["violations"] == ["confidence 0.098 is below 0.5"]


def test_named_actions_and_commands_of_their_own_length(server: TorchServe) -> None:
    short = ask(server, "choosing", {"image": grey(0)}, command="lift")
    long = ask(server, "choosing", {"image": grey(0)}, command="lift now please")

    assert short.status_code == long.status_code == 200
    assert [answer.json()["actions"][0]["name"] for answer in (short, long)] == ["stop", "stop"]
    # The logit of "stop" is the number of tokens, template included: 3 and 5.
    first, second = (answer.json()["actions"][0]["probabilities"] for answer in (short, long))
    assert second[3] > first[3] > 0.5
    too_long = ask(server, "choosing", {"image": grey(0)}, command="lift " * 9)
    assert (too_long.status_code, too_long.json()["error"]["field"]) == (422, "command")


def test_an_eager_module_branches_and_an_unsafe_action_is_rejected(server: TorchServe) -> None:
    dark, light = (
        ask(server, "branching", {"image": grey(51)}),
        ask(server, "branching", {"image": grey(255)}),
    )

    np.testing.assert_allclose(dark.json()["actions"], [[-0.3, -0.3]], atol=1e-6)
    assert (light.status_code, light.json()["error"]["code"]) == (503, "unsafe_action")


def test_raw_pictures_are_the_same_pictures(server: TorchServe) -> None:
    pixels = np.random.default_rng(0).integers(128, 256, (8, 8, 3), np.uint8)
    raw = {"shape": [8, 8, 3], "dtype": "uint8", "data": pixels.tobytes()}
    url, kind = f"{server.url}/predictions/turning", {"Content-Type": "application/msgpack"}

    answer = requests.post(url, msgspec.msgpack.encode({"image": raw}), headers=kind, timeout=30)
    wrong = requests.post(
        url, msgspec.msgpack.encode({"image": raw | {"shape": [8, 9, 3]}}), headers=kind, timeout=30
    )

    assert answer.json()["actions"] == ask(server, "turning", {"image": pixels}).json()["actions"]
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (400, "image")


def test_rt2_says_that_it_chose_among_bins(server: TorchServe) -> None:
    described = requests.get(f"{server.management_url}/models/tiny_rt2?customized=true", timeout=30)
    spec = described.json()[0]["customizedMetadata"]

    assert (spec["action"]["kind"], spec["action"]["bins"]) == ("binned", 16)
    answer = ask(server, "tiny_rt2", {"image": grey(9, (96, 96))}, command="push", state=[0.1, 1.0])
    assert answer.status_code == 200
    values = (np.array(answer.json()["actions"]) / [0.03, 1.0] + 1) * 8 - 0.5  # the centres of 16 bins
    np.testing.assert_allclose(values, values.round(), atol=1e-4)


def test_two_archives_of_one_name_are_refused(tmp_path: Path) -> None:
    from archive.errors import ArchiveError  # noqa: PLC0415

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        archived(
            replace(turning(), name="same"), Options("a test", tmp_path / name / "same.mar", buckets=(1, 2))
        )

    with pytest.raises(ArchiveError, match=r"are both called 'same': export one under another file name"):
        TorchServe([tmp_path / "a" / "same.mar", tmp_path / "b" / "same.mar"], port=free_port())

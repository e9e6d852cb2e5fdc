"""Every kind of policy that the runtime claims, exported and served by one TorchServe over HTTP."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import requests
from making import STARTUP_TIMEOUT_S, running, write_checkpoint
from sources import branching, choosing, grey, png, remembering, turning

from export.export import Options, archived
from export.native import make
from server.ports import free_port
from server.process import TorchServe
from vla.evaluation.episodes import Recorded
from vla_client import AheadPlayer, Observation, RemotePolicy

SPOKEN = ("", " a", " b", " c", " d", " e", " f", " g", " h")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("kinds")
    sources = [remembering(), turning(), choosing(folder), branching(folder)]
    sources.append(make(write_checkpoint(folder / "rt2", "rt2")))
    said = {"pieces": SPOKEN, "text_tokens": 5}
    speaking = make(write_checkpoint(folder / "speaking", "rt2", **said))
    sources.append(replace(speaking, name="speaking"))
    sources.append(make(write_checkpoint(folder / "flow", "flow", max_delay=2)))
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
    assert sure.json()["safety"] == {"status": "ok", "violations": [], "saturated": 0.0}
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


def test_rt2_says_a_text_that_depends_on_what_it_is_told(server: TorchServe) -> None:
    described = requests.get(f"{server.management_url}/models/speaking?customized=true", timeout=30)
    artifact = described.json()[0]["customizedMetadata"]["artifact"]
    assert artifact["extras"]["text"]["pieces"] == list(SPOKEN)

    texts = set()
    for command in ("push", "is the red block left of the green one?", "which block is nearest to you", "go"):
        answer = ask(server, "speaking", {"image": grey(9, (96, 96))}, command=command, state=[0.1, 1.0])
        assert answer.status_code == 200
        text = answer.json()["extras"]["text"]
        assert set(text.split()) <= set("abcdefgh")
        texts.add(text)
    assert len(texts) > 1


def test_a_player_tells_what_it_executes_until_the_answer_comes(server: TorchServe) -> None:
    seen = Observation(grey(9, (96, 96)), "push", [0.1, 1.0])
    with RemotePolicy(server.url, timeout_s=30, model="tiny_flow", body="msgpack") as policy:
        recorded = Recorded(policy)
        with AheadPlayer(recorded, replan=2, lead=1) as player:
            executed = [player.action(lambda: seen) for _ in range(6)]
        old, new = recorded.chunks[:2]

    assert (old.delay, new.delay, new.max_delay) == (0, 1, 2)
    # The second chunk was asked for at step 1.
    np.testing.assert_allclose(new.actions[0], executed[1], atol=1e-6)
    assert np.abs(new.actions[1:] - old.actions[1:]).max() > 1e-4


def test_delays_that_can_not_be_are_refused(server: TorchServe) -> None:
    picture, state = {"image": grey(9, (96, 96))}, [0.1, 1.0]
    rest = [[0.01, 0.5], [0.02, 0.5]]
    cases: list[tuple[dict[str, object], int, str]] = [
        ({"delay": 3, "previous": rest}, 422, "delay"),
        ({"delay": -1, "previous": rest}, 422, "delay"),
        ({"delay": 1.5, "previous": rest}, 422, "delay"),
        ({"delay": 2, "previous": rest[:1]}, 422, "delay"),
        ({"delay": 1}, 400, "previous"),
        ({"delay": 1, "previous": [[0.01]]}, 422, "previous"),
    ]
    for told, status, field in cases:
        answer = ask(server, "tiny_flow", picture, command="push", state=state, **told)
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
    answer = ask(server, "tiny_flow", picture, command="push", state=state, delay=2, previous=rest)
    assert answer.json()["delay"] == 2
    np.testing.assert_allclose(answer.json()["actions"][:2], rest, rtol=1e-6)
    other = ask(server, "turning", {"image": grey(255)}, delay=0)
    assert (other.status_code, other.json()["error"]["field"]) == (400, "delay")


def test_two_archives_of_one_name_are_refused(tmp_path: Path) -> None:
    from archive.errors import ArchiveError  # noqa: PLC0415

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        archived(
            replace(turning(), name="same"), Options("a test", tmp_path / name / "same.mar", buckets=(1, 2))
        )

    with pytest.raises(ArchiveError, match=r"are both called 'same': export one under another file name"):
        TorchServe([tmp_path / "a" / "same.mar", tmp_path / "b" / "same.mar"], port=free_port())

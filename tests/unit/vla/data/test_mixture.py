"""Mixtures: mapped and masked, weights kept, reproducible after a resume, shards disjoint and complete."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from vla.data import frames
from vla.data.episodes import About, DataError, Episode
from vla.data.frames import Frames
from vla.data.mirror import Mirror
from vla.data.mixture import Mixture, Samples
from vla.data.recipe import Ingredient, Recipe, read_recipe
from vla.data.sampler import BLOCK, Sampler
from vla.data.stream import Stream

SIZE = 4


class Arm:
    """A robot's data set; its numbers tell where each comes from."""

    def __init__(
        self,
        cameras: tuple[str, ...],
        state: tuple[str, ...],
        action: tuple[str, ...],
        lengths: tuple[int, ...],
        base: float,
    ) -> None:
        self.about = About("arm", 10.0, dict.fromkeys(cameras, (SIZE, SIZE)), state, action)
        self._lengths, self._base = lengths, base

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self):
        first = 0
        for index, length in enumerate(self._lengths):
            numbers = self._base + np.arange(first, first + length)[:, None]
            state = numbers + 0.25 * np.arange(len(self.about.state))
            actions = -numbers - 0.25 * np.arange(len(self.about.action))
            yield Episode(
                {name: self._pictures(place, length) for place, name in enumerate(self.about.cameras)},
                state.astype(np.float32),
                actions.astype(np.float32),
                (f"to the left {index}",) * length,
                index % 2 == 0,
            )
            first += length

    def _pictures(self, place: int, length: int) -> list[Image.Image]:
        ramp = np.zeros((SIZE, SIZE, 3), np.uint8)
        ramp[:, 0] = 10 * (place + 1) + int(self._base) % 7
        return [Image.fromarray(ramp)] * length


ONE = Arm(("top", "wrist"), ("x", "y"), ("dx", "grip"), (5, 3, 6), 0)
TWO = Arm(("front",), ("q", "y"), ("dx", "dy", "grip"), (4, 7), 1000)
RECIPE = Recipe(
    datasets=(
        Ingredient("one", weight=3, cameras={"front": "top"}),
        Ingredient("two", weight=1, state={"x": "q"}),
    ),
    cameras=("front", "wrist"),
    state=("x", "y"),
    action=("dx", "dy", "grip"),
)


@pytest.fixture(scope="module")
def parts() -> list[Frames]:
    return [frames.load(each, SIZE) for each in (ONE, TWO)]


def mixed(parts: list[Frames], recipe: Recipe = RECIPE, **options: Any) -> Mixture:
    given: dict[str, Any] = {"horizon": 3, "seed": 5, "normalisation": "identity"} | options
    return Mixture(recipe, parts, **given)


def rows_of(samples: Samples) -> list[tuple[int, int]]:
    """Data set and frame of each sample, told by its first number."""
    return [(int(x >= 1000), int(x) % 1000) for x in samples.state[:, 0]]


def same(one: Samples, other: Samples) -> bool:
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


def test_what_a_data_set_lacks_is_masked(parts: list[Frames]) -> None:
    samples = mixed(parts).gather(np.array([1, 0]), np.array([2, 1]))

    assert samples.seen.tolist() == [[True, False], [True, True]]
    assert samples.images[:, :, 0, 0, 0].tolist() == [[16, 0], [10, 20]]
    assert samples.measured.all()
    assert samples.state.tolist() == [[1002, 1002.25], [1, 1.25]]
    assert samples.valid[:, 0].tolist() == [[True, True, True], [True, False, True]]
    assert samples.actions[:, 0].tolist() == [[-1002, -1002.25, -1002.5], [-1, 0, -1.25]]
    assert samples.commands == ("to the left 0", "to the left 0")


def test_a_chunk_ends_with_its_episode(parts: list[Frames]) -> None:
    samples = mixed(parts).gather(np.array([0, 1]), np.array([3, 3]))

    assert samples.valid[0, :, 0].tolist() == [True, True, False]
    assert samples.actions[0, :, 0].tolist() == [-3, -4, -4]
    assert samples.valid[1, :, 0].tolist() == [True, False, False]


@pytest.mark.parametrize("rule", ["bounds", "mean_std", "quantiles"])
def test_each_data_set_has_statistics_of_its_own(parts: list[Frames], rule: str) -> None:
    samples = mixed(parts, normalisation=rule).batch(0, 400)
    for index in range(2):
        mine = samples.actions[samples.dataset == index][samples.valid[samples.dataset == index]]
        assert abs(mine).max() < 4
        assert abs(mine.mean()) < 0.5


def test_names_that_the_recipe_leaves_out_are_all_there_are(parts: list[Frames]) -> None:
    mixture = mixed(parts, msgspec.structs.replace(RECIPE, cameras=(), state=(), action=()))

    assert mixture.cameras == ("front", "wrist")
    assert mixture.action == ("dx", "grip", "dy")


def test_the_mixture_s_statistics_are_those_of_the_first_that_has_each(parts: list[Frames]) -> None:
    summary = mixed(parts).summary("action")

    assert summary["max"].tolist() == [0, -1000.25, -0.25]


@pytest.mark.parametrize("weights", [(3, 1), (1, 0.01), (0.2, 0.5)])
def test_weights_are_kept(weights: tuple[float, float]) -> None:
    sampler = Sampler([np.arange(7), np.arange(100)], weights, seed=1)
    share = weights[0] / sum(weights)
    for first, count in ((0, BLOCK), (1000, 4000)):
        drawn = (sampler.draws(first, count)[0] == 0).sum()
        assert abs(drawn - share * count) <= 1 + count / BLOCK


def test_every_pass_has_every_frame_once_and_another_order() -> None:
    sampler = Sampler([np.arange(10, 17), np.arange(30)], (1, 1), seed=2)
    dataset, row = sampler.draws(0, 600)
    mine = row[dataset == 0]
    passes = mine[: len(mine) // 7 * 7].reshape(-1, 7)

    assert len(passes) > 30
    assert (np.sort(passes) == np.arange(10, 17)).all()
    assert len(np.unique(passes, axis=0)) > 20


def test_draws_are_the_same_from_wherever_they_are_read() -> None:
    whole = Sampler([np.arange(7), np.arange(50)], (2, 1), seed=3).draws(0, 1000)
    for first, count in ((0, 1), (255, 3), (700, 300), (13, 500)):
        part = Sampler([np.arange(7), np.arange(50)], (2, 1), seed=3).draws(first, count)
        assert all(np.array_equal(a, b[first : first + count]) for a, b in zip(part, whole, strict=True))
    other = Sampler([np.arange(7), np.arange(50)], (2, 1), seed=4).draws(0, 1000)
    assert not np.array_equal(other[1], whole[1])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_failed_episodes_are_left_out_or_drawn_less(share: float, expected: int) -> None:
    sampler = Sampler([np.arange(20)], [1], 0, [np.arange(100, 108)], share)
    _, row = sampler.draws(0, 40 * sampler.lengths[0])
    passes = row.reshape(40, -1) >= 100

    assert sampler.lengths == (20 + expected,)
    assert (passes.sum(1) == expected).all()
    assert len(np.unique(row[row >= 100])) == (8 if expected else 0)


def test_failed_episodes_of_a_mixture_are_left_out(parts: list[Frames]) -> None:
    kept = {row for step in range(20) for row in rows_of(mixed(parts, failed=0.0).batch(step, 32))}

    assert kept == {(0, i) for i in (*range(5), *range(8, 14))} | {(1, i) for i in range(4)}


def test_nothing_but_failures_is_refused() -> None:
    failed = frames.load(Arm(("front",), ("x",), ("dx",), (3, 2), 0), SIZE)
    failed = replace(failed, success=(False, False))
    with pytest.raises(DataError, match="no frame to train on"):
        Mixture(Recipe((Ingredient("a"),)), [failed], horizon=1, seed=0, failed=0.0)


def test_held_out_episodes_are_never_drawn(parts: list[Frames]) -> None:
    mixture = mixed(parts, held_out=0.4)
    drawn = {row for step in range(20) for row in rows_of(mixture.batch(step, 32))}
    held = {(i, int(row)) for i, rows in enumerate(mixture.held_out) for row in rows}

    assert held
    assert drawn == {(i, row) for i, part in enumerate(parts) for row in range(len(part))} - held


def test_ranks_are_disjoint_and_complete(parts: list[Frames]) -> None:
    whole, mixture = mixed(parts), mixed(parts)
    for step in range(5):
        every = whole.batch(step, 12)
        shares = [mixture.batch(step, 4, rank, 3) for rank in range(3)]
        for field in ("state", "actions", "images", "dataset"):
            joined = np.stack([getattr(share, field) for share in shares], axis=1)
            assert np.array_equal(joined.reshape(-1, *joined.shape[2:]), getattr(every, field)), field


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_s_workers_change_nothing(parts: list[Frames], workers: int) -> None:
    mixture = mixed(parts)
    loader = DataLoader(Stream(mixture, 4), batch_size=None, num_workers=workers)
    for step, batch in enumerate(itertools.islice(loader, 6)):
        assert np.array_equal(np.asarray(batch.state), mixture.batch(step, 4).state), step


def test_a_resumed_stream_goes_on_where_it_was(parts: list[Frames]) -> None:
    options: dict[str, Any] = {"failed": 0.5, "held_out": 0.3}
    stream = Stream(mixed(parts, **options), 8, rank=1, ranks=2)
    through = list(itertools.islice(stream, 20))
    state = msgspec.json.decode(msgspec.json.encode(stream.state_dict(13)))
    again = Stream(mixed(parts, **options), 8, rank=1, ranks=2)
    again.load_state_dict(state)

    resumed = list(itertools.islice(again, 7))
    assert all(same(one, other) for one, other in zip(resumed, through[13:], strict=True))
    assert not same(resumed[0], through[0])
    assert again.state_dict(7)["step"] == 20


def test_a_state_of_something_else_is_refused(parts: list[Frames]) -> None:
    state = Stream(mixed(parts), 8).state_dict(3)
    with pytest.raises(DataError, match="another size, ranks"):
        Stream(mixed(parts), 4, ranks=2).load_state_dict(state)
    with pytest.raises(DataError, match="another seed"):
        Stream(mixed(parts, seed=6), 8).load_state_dict(state)


def test_mirrored_samples_are_those_of_the_mirror(parts: list[Frames]) -> None:
    first = msgspec.structs.replace(RECIPE.datasets[0], mirror=Mirror(state=("y",), action=("dx",)))
    recipe = msgspec.structs.replace(RECIPE, datasets=(first, RECIPE.datasets[1]))
    plain = mixed(parts).batch(0, 64)
    mirrored, half = (mixed(parts, recipe, mirror=share).batch(0, 64) for share in (1.0, 0.5))
    one = plain.dataset == 0

    assert np.array_equal(mirrored.state[one], plain.state[one] * np.array([1, -1], np.float32))
    assert np.array_equal(mirrored.actions[one], plain.actions[one] * np.array([-1, 1, 1], np.float32))
    assert np.array_equal(mirrored.images[one], plain.images[one][..., ::-1])
    assert {mirrored.commands[i][:12] for i in np.flatnonzero(one)} == {"to the right"}
    assert np.array_equal(mirrored.state[~one], plain.state[~one])
    share = (half.state[one][:, 1] < 0).mean()
    assert 0.3 < share < 0.7


def test_a_mirror_that_nobody_names_is_refused(parts: list[Frames]) -> None:
    with pytest.raises(DataError, match="of no data set how"):
        mixed(parts, mirror=0.5)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"datasets": []}, "one data set at least"),
        ({"datasets": [{"path": "a", "weight": 0}]}, "the weight must be positive"),
        ({"datasets": [{"path": "a", "wieght": 1}]}, "wieght"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, recipe: dict, message: str) -> None:
    path = tmp_path / "mixture.json"
    path.write_bytes(msgspec.json.encode(recipe))
    with pytest.raises(DataError, match=re.escape(message)):
        read_recipe(path)


def test_names_that_a_data_set_lacks_are_refused(parts: list[Frames]) -> None:
    recipe = Recipe((Ingredient("a", cameras={"front": "side"}), Ingredient("b")))
    with pytest.raises(DataError, match="a: cameras has no side; there are top, wrist"):
        mixed(parts, recipe)
    with pytest.raises(DataError, match=r"none of the mixture's \('pitch',\)"):
        mixed(parts, msgspec.structs.replace(RECIPE, action=("pitch",)))


def test_paths_of_a_recipe_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mixture.json").write_text('{"datasets": [{"path": "set"}]}')

    assert read_recipe(tmp_path / "mixture.json").datasets[0].path == str(tmp_path / "set")

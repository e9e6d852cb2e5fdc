"""DAgger on the real simulator: who acts, what is labelled, what is written, and that it goes on."""

import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from vla.evaluation.report import Rate
from vla.learning.acting import Actor
from vla.learning.curves import Judged, draw, pooled
from vla.learning.dagger import markdown, run
from vla.learning.episodes import begin, mixture, record, shortened, success
from vla.learning.judge import Judge, judge
from vla.learning.results import Results
from vla.learning.rounds import Dagger, Round, collect, episodes_of, policy_of
from vla.models import build, module_of
from vla.tabletop.commands import COLOURS, GOALS, Goal
from vla.tabletop.demonstrations import Demonstrations
from vla.tabletop.expert import expert_action, holds
from vla.tabletop.simulator import Tabletop
from vla_runtime.errors import SpecError

LIFT = Goal("lift", "red")


@pytest.fixture(scope="module")
def env():
    return Tabletop()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return Dagger(
        tmp_path_factory.mktemp("run"),
        arms=("dagger", "cloning"),
        seeds=(0,),
        goals=("lift red", "lift blue"),
        start="elsewhere",
        rounds=1,
        first_frames=40,
        frames=40,
        every=1,
        first_steps=3,
        steps=3,
        episodes=2,
        preset="tiny",
        image_size=32,
        batch=4,
    )


@pytest.fixture(scope="module")
def results(config):
    return run(config)


def test_a_start_elsewhere_moves_the_hand_down_and_costs_no_time(env):
    env.reset(5, LIFT)
    rest = env.state()
    begin(env, 5, LIFT, "rest")
    assert np.array_equal(env.state(), rest)
    begin(env, 5, LIFT, "elsewhere")
    elsewhere = env.state()
    assert elsewhere[2] < 0.125 < rest[2]
    assert env.steps == 0
    assert env.outcome() is None
    begin(env, 5, LIFT, "elsewhere")
    assert np.array_equal(env.state(), elsewhere)


def test_a_start_may_hold_any_block_but_the_commanded_one(env):
    held = []
    for seed in range(12):
        begin(env, seed, LIFT, "holding")
        held += [colour for colour in COLOURS if holds(env.hand(), env.block(colour))]
        assert env.steps == 0
        assert env.outcome() is None
    assert len(held) == 12
    assert set(held) == {"green", "blue", "yellow"}
    with pytest.raises(ValueError, match="has reached that: start elsewhere"):
        begin(env, 0, Goal("reach", "red"), "holding")


def test_the_expert_succeeds_from_all_starts(env):
    assert success(env, None, GOALS, range(24), "elsewhere") == Rate(24, 24)
    assert success(env, None, [LIFT], range(24), "holding") == Rate(24, 24)


def test_the_mixture_lets_the_expert_act_as_often_as_beta_says(env, config, results):
    actor = Actor.load(policy_of(config, 0, "dagger", 0))
    begin(env, 3, LIFT, "rest")
    wanted = expert_action(env, LIFT)
    shares = {}
    for beta in (0.0, 0.25, 1.0):
        act = mixture(env, actor, beta, np.random.default_rng(0))
        shares[beta] = np.mean([np.array_equal(act(), wanted) for _ in range(200)])
    assert shares[0.0] == 0
    assert shares[1.0] == 1
    assert 0.18 < shares[0.25] < 0.32


def test_labels_are_the_experts_whoever_acts(env):
    begin(env, 4, LIFT, "elsewhere")
    still = np.array([0, 0, 0, -1], np.float32)
    episode = shortened(record(env, lambda: still, image_size=32, horizon=2, every=2), 3)
    assert env.over
    begin(env, 4, LIFT, "elsewhere")
    for frame in range(3):
        assert np.array_equal(episode.state[frame], env.state())
        for index, goal in enumerate(GOALS):
            assert np.array_equal(episode.actions[frame, index, 0], expert_action(env, goal))
        env.step(still)
        env.step(still)
    assert episode.goal.tolist() == [GOALS.index(LIFT)] * 3


def test_a_round_adds_exactly_its_frames_and_keeps_the_earlier_ones(config, results):
    first, second = (
        Demonstrations.load(policy_of(config, 0, "dagger", number) / "data") for number in (0, 1)
    )
    assert (len(first), len(second)) == (40, 80)
    for name in ("images", "state", "actions", "blocks", "boxes", "hand", "episode", "goal"):
        assert np.array_equal(getattr(second, name)[:40], getattr(first, name))
    assert set(second.goal) == {GOALS.index(LIFT), GOALS.index(Goal("lift", "blue"))}
    assert second.description.seed == 5000
    assert [len(each.state) for each in episodes_of(policy_of(config, 0, "dagger", 0) / "data")] == (
        np.bincount(first.episode).tolist()
    )


def test_clonings_further_frames_are_the_experts_from_rest(config, results, env):
    again = collect(config, env, None, seed=0, number=1, beta=1.0, start="rest")
    data = Demonstrations.load(policy_of(config, 0, "cloning", 1) / "data")
    assert np.array_equal(data.state[40:], np.concatenate([each.state for each in again]))
    other = Demonstrations.load(policy_of(config, 0, "dagger", 1) / "data")
    assert not np.array_equal(data.state[40:], other.state[40:])


def test_rounds_are_judged_and_the_cloned_policy_is_common(config, results):
    assert [(each.arm, each.number, each.frames, each.beta) for each in results] == [
        ("dagger", 0, 40, 1.0),
        ("dagger", 1, 80, 0.5),
        ("cloning", 0, 40, 1.0),
        ("cloning", 1, 80, 1.0),
    ]
    assert {each.episodes for each in results} == {2}
    assert results[0].successes == results[2].successes
    assert (config.out / "dagger.png").stat().st_size > 5000


def test_a_run_goes_on_with_what_is_missing_alone(config, results):
    lines = (config.out / "results.jsonl").read_text().splitlines()
    (config.out / "results.jsonl").write_text(lines[0] + "\n")
    weights = policy_of(config, 0, "dagger", 1) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert run(replace(config, resume=True)) == results
    assert weights.stat().st_mtime_ns == before


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(config, results, tmp_path):
    with pytest.raises(SpecError, match="holds a run already: go on with it by --resume"):
        run(config)
    with pytest.raises(SpecError, match="was run with another steps: it can't be resumed"):
        run(replace(config, resume=True, steps=4))
    with pytest.raises(SpecError, match="holds no run to go on with"):
        Results(tmp_path, config, Round, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": 1.5}, "decay must be from 0 to 1, got 1.5"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"goals": ("reach red",), "start": "holding"}, "start must be elsewhere for goals of reaching"),
        ({"goals": ("lift pink",)}, "unknown goal 'lift pink'"),
        ({"arms": ()}, "arms, seeds and goals must name at least one each"),
        ({"first_seed": 1 << 40}, "first_seed must leave"),
    ],
)
def test_settings_are_checked(config, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Dagger(**{**asdict(config), **change})


def test_beta_falls_by_its_decay():
    assert [Dagger(decay=0.5).beta(number) for number in range(4)] == [1, 0.5, 0.25, 0.125]


def test_a_policy_is_judged_without_an_export(config, results):
    folder = policy_of(config, 0, "dagger", 1)
    told = judge(Judge((folder,), goals=("lift red", "lift blue"), episodes=2, first_seed=config.first_seed))
    assert re.search(r"seed0/dagger1 +\| \d+ \[\d+, \d+\] +\| 2 ", told)


def test_a_policy_that_reads_noise_does_not_act_here(config, results):
    about = Actor.load(policy_of(config, 0, "dagger", 1)).config
    model = build("diffusion", asdict(module_of("diffusion").Config.tiny()), about.sizes())
    with pytest.raises(SpecError, match="needs one camera, continuous actions and no noise"):
        Actor(about, model)


def test_seeds_are_added_up_where_all_of_them_are(tmp_path):
    points = [Judged(0, 40, Rate(3, 10)), Judged(1, 40, Rate(5, 10)), Judged(0, 80, Rate(9, 10))]
    assert pooled(points) == {40: Rate(8, 20)}
    draw(tmp_path / "curve.png", {"one": points}, "frames", "success")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_the_table_has_each_seed_and_all_together(config):
    results = [Round(seed, "dagger", 0, 40, 1.0, 5 + seed, 10) for seed in (0, 1)]
    assert markdown(config, results).splitlines()[-1].split("|")[1:-1] == [
        " dagger ",
        " 0     ",
        " 40     ",
        " 55 [34, 74]       ",
        " 5 of 10, 6 of 10  ",
    ]

"""Closed-loop episodes against a served and an in-process policy."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import tyro

from vla.evaluation.conditions import BASELINES, Condition, trials
from vla.evaluation.episodes import ENDING_STEPS, Episode, MakePolicy, Setup, run_all
from vla.evaluation.plot import plot
from vla.evaluation.policies import ArchivedPolicy, ExpertPolicy, RandomPolicy
from vla.evaluation.render import animate, contact_sheet, record
from vla.evaluation.report import Summary, Threshold, largest_difference, markdown, summarise
from vla.tabletop.collection import leave_to_demonstrations
from vla.tabletop.commands import GOALS, Goal, parse
from vla.tabletop.simulator import Tabletop
from vla_client import Encoding, Policy, RemotePolicy

# Data sets made before their scenes had a range of their own used the seeds below.
FIRST_UNSEEN_SEED = 100_000
# The goals shown in pictures, each in the first scene of this evaluation that has it.
SHOWN = (Goal("reach", "red"), Goal("lift", "green"), Goal("push", "blue"), Goal("lift", "yellow"))


@dataclass(frozen=True)
class Evaluation:
    """Run closed-loop episodes in the simulator and report success, latency and batching.

    With --url and --archive both are run on the same scenes and the same encoded pictures, side by side.
    """

    # Root of the inference server that serves the policy, for instance http://127.0.0.1:8080.
    url: str | None = None
    # Archive (.mar) of the policy to be run in this process.
    archive: Path | None = None
    # Conditions: phrasings held_out and seen; ablations wrong_colour, blank and shuffled; baselines expert
    # and random, which need no policy.
    conditions: tuple[Condition, ...] = ("held_out",)
    # Goals to pursue, `lift blue` for instance; none named: all 12.
    goals: tuple[str, ...] = ()
    # Episodes of each condition, spread evenly over the goals.
    episodes: int = 120
    # Seed of the first scene, 100000 or more and below 2**40, where demonstrations' seeds begin; the next
    # episodes take the next seeds.
    first_seed: int = FIRST_UNSEEN_SEED
    # Robots that act at once, so that the server can batch them.
    robots: int = 8
    # Actions of a chunk that are executed before the next observation [control steps].
    replan: int = 1
    # How long what is done must stay done to count as that too [control steps, at most 10].
    dwell: int = 0
    # Width and height of the picture that is sent [pixels].
    image_size: int = 96
    # How pictures are encoded: png is lossless, jpeg is of quality 95.
    encoding: Encoding = "png"
    # Name of the served model; vla/1.0 asks for one version.
    model: str = "vla"
    # Longest wait for the server [s].
    timeout_s: float = 10.0
    # Device of the in-process policy, a torch device.
    device: str = "cpu"
    # Folder of the results.
    out: Path = Path("runs/evaluation")
    # Least success of a condition, for instance held_out=0.95; exit status 1 when missed. Repeatable.
    require: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    # Largest success of a condition, for instance wrong_colour=0.05; exit status 1 when exceeded. Repeatable.
    at_most: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    # Write episode.gif and contact_sheet.png.
    pictures: bool = True

    def __post_init__(self) -> None:
        for name in ("episodes", "robots", "replan", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for goal in self.goals:
            parse(goal)
        _ = self.setup  # checks the dwell
        if self.first_seed < FIRST_UNSEEN_SEED:
            raise ValueError(f"first_seed must be at least {FIRST_UNSEEN_SEED}, which training never uses")
        leave_to_demonstrations(self.first_seed, self.episodes)
        if not self.conditions:
            raise ValueError("conditions must name at least one")
        if not (self.url or self.archive) and not set(self.conditions) <= set(BASELINES):
            raise ValueError("needs a policy: --url of a server, --archive of a .mar, or both")
        for threshold in (*self.thresholds(self.require), *self.thresholds(self.at_most)):
            if threshold.condition not in self.conditions:
                raise ValueError(f"a threshold names {threshold.condition}, which --conditions does not run")

    @property
    def pursued(self) -> tuple[Goal, ...]:
        """The goals to pursue."""
        return tuple(map(parse, self.goals)) or GOALS

    @property
    def setup(self) -> Setup:
        """How the robots observe and act."""
        return Setup(self.replan, self.image_size, self.encoding, dwell=self.dwell)

    @staticmethod
    def thresholds(texts: Sequence[str]) -> list[Threshold]:
        """Parse thresholds; raises ValueError for one that is not `condition=rate`."""
        return [Threshold.parse(text) for text in texts]


def evaluate(config: Evaluation) -> tuple[list[Summary], list[Episode], dict[str, float]]:
    """Run every condition; returns its summaries, its episodes and how far HTTP and in-process differ.

    Raises:
        PolicyFailure: the server is not there, or answers nonsense.
        SpecError, FileNotFoundError: the archive can't be loaded.
    """
    summaries: list[Summary] = []
    everything: list[Episode] = []
    differences: dict[str, float] = {}
    with _policies(config) as makers:
        for condition in config.conditions:
            todo = trials(condition, config.episodes, config.first_seed, config.pursued)
            found: dict[str, list[Episode]] = {}
            for source, make in _sources(condition, makers):
                title = f"{condition} ({source})"
                found[source] = run_all(todo, make, config.setup, config.robots, title)
                summaries.append(summarise(source, found[source]))
                everything += found[source]
            if {"http", "in-process"} <= set(found):
                difference = largest_difference(found["http"], found["in-process"])
                if difference is not None:
                    differences[condition] = difference
        if config.pictures:
            _draw(config, makers)
    return summaries, everything, differences


@contextlib.contextmanager
def _policies(config: Evaluation) -> Iterator[dict[str, MakePolicy]]:
    """Open the policies under test: how each robot gets its own, by the policy's source."""
    makers: dict[str, MakePolicy] = {}
    with contextlib.ExitStack() as opened:
        if config.url is not None:
            url = config.url
            makers["http"] = lambda _: RemotePolicy(url, config.timeout_s, config.model, config.encoding)
        if config.archive is not None:
            archived = opened.enter_context(ArchivedPolicy(config.archive, config.device))
            makers["in-process"] = lambda _: nullcontext(archived)
        yield makers


def _sources(condition: Condition, makers: dict[str, MakePolicy]) -> list[tuple[str, MakePolicy]]:
    if condition in BASELINES:
        return [("script", lambda env: _baseline(condition, env))]
    return list(makers.items())


def _baseline(condition: Condition, env: Tabletop) -> AbstractContextManager[Policy]:
    return nullcontext(ExpertPolicy(env) if condition == "expert" else RandomPolicy())


def _draw(config: Evaluation, makers: dict[str, MakePolicy]) -> None:
    """Record the goals shown, in held-out phrasings, with the served policy or else the next best."""
    make = next(iter(makers.values()), lambda env: _baseline("expert", env))
    scenes = trials("held_out", len(GOALS), config.first_seed)
    chosen = [trial for goal in SHOWN for trial in scenes if trial.goal == goal]
    with contextlib.closing(Tabletop()) as env, make(env) as policy:
        recordings = [record(env, policy, trial, config.setup) for trial in chosen]
    animate(recordings, config.out / "episode.gif")
    contact_sheet(recordings[: len(SHOWN) - 1], config.out / "contact_sheet.png")


def write(config: Evaluation, results: tuple[list[Summary], list[Episode], dict[str, float]]) -> str:
    """Write evaluation.json, evaluation.md and success.png; returns the Markdown."""
    summaries, episodes, differences = results
    lines = [markdown(summaries), "", f"Success in percent of {config.episodes} episodes a row."]
    if any(summary.done_early for summary in summaries):
        lines.append(
            f"Done: percent of each task's successes that the policy calls done within {ENDING_STEPS} steps; "
            "of all episodes, those that it calls done before a success or without one."
        )
    if config.dwell:
        lines += [
            f"{each.condition} ({each.source}): success that stays for {config.dwell} steps "
            f"{each.stayed.percent(1)} %; other blocks moved in {each.disturbed.percent(1)} % of episodes."
            for each in summaries
        ]
    lines += [
        f"{condition}: the first chunks over HTTP and in-process differ by at most {difference:.2g}."
        for condition, difference in differences.items()
    ]
    text = "\n".join(lines) + "\n"
    (config.out / "evaluation.md").write_text(text)
    report = {
        "configuration": asdict(config),
        "summaries": [_plain(summary) for summary in summaries],
        "largest_difference_of_first_chunks": differences,
        "episodes": [{**_fields(episode), "trial": asdict(episode.trial)} for episode in episodes],
    }
    (config.out / "evaluation.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(report, enc_hook=str), indent=1) + b"\n"
    )
    try:
        plot(summaries, config.out / "success.png")
    except ModuleNotFoundError:
        print("no success.png: matplotlib is not installed; it comes with the dev extra", file=sys.stderr)
    return text


def _plain(summary: Summary) -> dict[str, object]:
    """A summary as JSON has it, with the rate and its interval spelt out."""
    return {**asdict(summary), "success": summary.total.value, "interval": summary.total.interval}


def _fields(episode: Episode) -> dict[str, object]:
    return {name: value for name, value in vars(episode).items() if name != "first"}

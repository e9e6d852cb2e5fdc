"""From a data set to batches: frames, several commands for each of them, and the actions these call for.

For a policy that abstains, commands are drawn from the grammar of `vla.tabletop.language`, some of them
impossible, and pictures are disturbed, some of them foreign: both call for standing still.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vla.checkpoint import CommandTokenizer, Config, Frame
from vla.models import Batch, module_of
from vla.tabletop.commands import GOALS, HELD_OUT, PHRASES, SKILLS, Goal, held_out, phrase
from vla.tabletop.demonstrations import Demonstrations
from vla.tabletop.expert import done, standing_still
from vla.tabletop.labels import TARGETS
from vla.tabletop.language import draw
from vla.tabletop.vocabulary import Split
from vla.training.augmentation import disturb, foreign
from vla.training.texts import scene_of, with_texts
from vla_runtime.actions import normalise
from vla_runtime.errors import SpecError
from vla_runtime.preprocessing import normalise_pictures
from vla_runtime.spec import ContinuousSpace, DiscreteSpace

# Streams of randomness under one seed, so that step `i` draws the same batch in whatever run it happens.
SPLIT, TRAIN, VALIDATE, SENTENCES, CALIBRATE, READ = range(6)
# For a policy that abstains: share of the commands that are impossible, and of the pictures that are foreign.
IMPOSSIBLE, FOREIGN = 0.3, 0.08
# Where a batch has an impossible command in place of a goal's index.
NONE = len(GOALS)


@dataclass(frozen=True)
class Batches:
    """Draws batches; the same `(seed, step)` always gives the same one."""

    dataset: Demonstrations
    config: Config
    seed: int
    # Share of the episodes held out for validation, at least one episode.
    validation_share: float
    # Share of the commands that are drawn from all goals; the rest is the goal that the episode pursued.
    counterfactual: float
    # Goals that training never commands, and whose episodes it does not see.
    excluded: tuple[Goal, ...] = ()
    # Sentences of each goal that are drawn from the grammar.
    sentences: int = 3000

    def __post_init__(self) -> None:
        goals = tuple(tuple(goal) for goal in GOALS)
        if self.dataset.description.goals != goals:
            raise SpecError("the data set's goals are not those of vla.tabletop.commands: collect it again")
        if self.dataset.description.episodes < 2:
            raise SpecError("the data set needs two episodes at least: one to train on, one to validate on")
        missing = sorted(set(SKILLS.values()) - set(self._skill_names))
        if missing:
            raise SpecError(f"the model's skills lack {', '.join(missing)}, which the demonstrations show")

    @property
    def space(self) -> ContinuousSpace:
        """The policy's action space.

        Raises:
            SpecError: the actions are symbols, which these demonstrations do not have.
        """
        if isinstance(self.config.action, DiscreteSpace):
            raise SpecError("the demonstrations have continuous actions, the policy discrete ones")
        return self.config.action

    @cached_property
    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training frames and of the validation frames; no episode has both: int64 [M]."""
        episodes = self.dataset.description.episodes
        order = np.random.default_rng([self.seed, SPLIT]).permutation(episodes)
        held = np.isin(self.dataset.episode, order[: max(1, round(episodes * self.validation_share))])
        trained = ~held & np.isin(self.dataset.goal, self.goals[0])
        return np.flatnonzero(trained), np.flatnonzero(held)

    @cached_property
    def goals(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the goals that are trained, and of those that are excluded: int64 [G]."""
        excluded = np.array([goal in self.excluded for goal in GOALS])
        return np.flatnonzero(~excluded), np.flatnonzero(excluded)

    @property
    def sayable(self) -> tuple[Goal, ...]:
        """The goals that are trained: were others said, if only to forbid them, they would be learned so."""
        return tuple(goal for goal in GOALS if goal not in self.excluded)

    def train(self, step: int, frames: int, commands: int) -> Batch:
        """Draw `frames` training frames with `commands` commands each, in training phrasings."""
        random = np.random.default_rng([self.seed, TRAIN, step])
        rows = random.choice(self.frames[0], frames)
        goals = _choose(random, self.goals[0], frames, commands)
        kept = random.random(goals.shape) >= self.counterfactual
        goals = np.where(kept, self.dataset.goal[rows, None], goals)
        wordings = random.integers(1 << 16, size=goals.shape)
        if not self.selective:
            batch = self._batch(rows, goals, self._phrases[0], wordings)
            return self._texts(batch, rows, goals, random) if self.config.model.get("text_tokens") else batch
        commanded = np.where(random.random(goals.shape) < IMPOSSIBLE, NONE, goals)
        batch = self._batch(rows, goals, self._sentences("train"), wordings, commanded)
        return self._disturbed(batch, rows, random)

    def _texts(self, batch: Batch, rows: np.ndarray, goals: np.ndarray, random: np.random.Generator) -> Batch:
        """Ask questions in place of some commands, and add what is to be said."""
        scenes = [scene_of(self.dataset, row) for row in rows]
        return with_texts(batch, scenes, goals, self.still(rows), tokenizer=self._asked, random=random)

    def _asked(self, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise a question; there are few, and they come again and again."""
        if question not in self._questions:
            self._questions[question] = self._tokenizer(question)
        return self._questions[question]

    @cached_property
    def _tokenizer(self) -> CommandTokenizer:
        return self.config.command_tokenizer()

    @cached_property
    def _questions(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Tokens and mask of the questions so far."""
        return {}

    @property
    def selective(self) -> bool:
        """Whether the policy learns to abstain."""
        return module_of(self.config.architecture).Model.selective

    def calibration(self, frames: int, commands: int) -> Batch:
        """Draw validation frames, disturbed and some foreign, with new sentences of the trained patterns."""
        random = np.random.default_rng([self.seed, CALIBRATE])
        rows = random.choice(self.frames[1], frames)
        goals = _choose(random, self.goals[0], frames, commands)
        commanded = np.where(random.random(goals.shape) < IMPOSSIBLE, NONE, goals)
        wordings = random.integers(1 << 16, size=goals.shape)
        batch = self._batch(rows, goals, self._sentences("train", CALIBRATE, 300), wordings, commanded)
        return self._disturbed(batch, rows, random)

    def validation(
        self, frames: int, commands: int, *, excluded: bool = False, shuffled: bool = False
    ) -> Batch:
        """Draw validation frames, the same ones every time, with commands in held-out phrasings.

        Args:
            frames: how many
            commands: how many each
            excluded: command the goals that training excludes, instead of those that it does not
            shuffled: command another goal than the one that the actions pursue, drawn at random
        """
        random = np.random.default_rng([self.seed, VALIDATE])
        rows = random.choice(self.frames[1], frames)
        goals = _choose(random, self.goals[int(excluded)], frames, commands)
        wordings = random.integers(1 << 16, size=goals.shape)
        others = random.integers(1, len(GOALS), size=goals.shape) if shuffled else 0
        phrases = self._sentences("test", VALIDATE, 200) if self.selective else self._phrases[1]
        return self._batch(rows, goals, phrases, wordings, commanded=(goals + others) % len(GOALS))

    def example(self) -> Frame:
        """Return the first validation frame, commanded in a held-out phrasing what its episode pursued."""
        row = int(self.frames[1][0])
        command = held_out(GOALS[int(self.dataset.goal[row])], 0)
        return Frame(self.dataset.images[row][None], command, np.array(self.dataset.state[row]))

    @property
    def _skill_names(self) -> tuple[str, ...]:
        """The model's names of skills, in the order of its labels; the tabletop's where it has none."""
        return tuple(self.config.model.get("skills", SKILLS.values()))

    @cached_property
    def _skills(self) -> np.ndarray:
        """The skill that each goal calls for: int64 [G], index into the model's names."""
        return np.array([self._skill_names.index(SKILLS[goal.task]) for goal in GOALS])

    @cached_property
    def _phrases(self) -> tuple[list[list[tuple[np.ndarray, np.ndarray]]], ...]:
        """Tokens and mask of every goal's phrasings: the training ones, then the held-out ones."""
        tokenizer = self.config.command_tokenizer()
        return tuple(
            [[tokenizer(say(goal, index)) for index in range(len(forms[goal.task]))] for goal in GOALS]
            for say, forms in ((phrase, PHRASES), (held_out, HELD_OUT))
        )

    def _sentences(
        self, split: Split, stream: int = SENTENCES, count: int = 0
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Tokens and mask of sentences of each goal, and last of six times as many impossible commands."""
        count = count or self.sentences
        key = (split, stream, count)
        if key not in self._drawn:
            random = np.random.default_rng([self.seed, SENTENCES, stream])
            tokenizer = self.config.command_tokenizer()
            goals = [(goal, count) for goal in GOALS] + [(None, 6 * count)]
            self._drawn[key] = [
                [tokenizer(draw(random, goal, split, self.sayable)) for _ in range(share)]
                for goal, share in goals
            ]
        return self._drawn[key]

    @cached_property
    def _drawn(self) -> dict[tuple[str, int, int], list[list[tuple[np.ndarray, np.ndarray]]]]:
        """Sentences that have been drawn already."""
        return {}

    def _disturbed(self, batch: Batch, rows: np.ndarray, random: np.random.Generator) -> Batch:
        """Disturb the batch's pictures, those of frames `rows`; put foreign ones in place of some."""
        generator = torch.Generator().manual_seed(int(random.integers(1 << 62)))
        pictures = torch.from_numpy(self.dataset.images[rows]).permute(0, 3, 1, 2).float() / 255
        shown = torch.from_numpy(random.random(len(rows)) >= FOREIGN)
        disturbed = disturb(pictures, generator)
        disturbed[~shown] = foreign(pictures[~shown], generator)
        still = self.still(rows)[:, None].expand(-1, batch.commands_per_frame, -1, -1).flatten(0, 1)
        acts = batch.possible & batch.per_command(shown)
        return batch._replace(
            images=normalise_pictures((255 * disturbed).unsqueeze(1), self.config.cameras),
            shown=shown,
            actions=torch.where(acts[:, None, None], batch.actions, still),
        )

    def still(self, rows: np.ndarray) -> torch.Tensor:
        """Return chunks that change nothing in frames `rows`: float32 [B, T, A], normalised."""
        still = standing_still(self.dataset.state[rows])[:, None]
        horizon = self.dataset.description.horizon
        return torch.from_numpy(normalise(np.repeat(still, horizon, 1), self.space))

    def _batch(
        self,
        rows: np.ndarray,
        goals: np.ndarray,
        phrases: list[list[tuple[np.ndarray, np.ndarray]]],
        wordings: np.ndarray,
        commanded: np.ndarray | None = None,
    ) -> Batch:
        """Gather frames and what is to be learned from them.

        Args:
            rows: int64 [B], of the data set
            goals: int64 [B, K], that the actions pursue
            phrases: tokens and mask of each goal's phrasings, and of impossible commands where there are any
            wordings: int64 [B, K], which phrasing of each goal, wraps round
            commanded: int64 [B, K], goals that the commands name, or `NONE`; None: `goals`
        """
        data = self.dataset
        named = goals if commanded is None else commanded
        commands = [
            phrases[goal][wording % len(phrases[goal])]
            for goal, wording in zip(named.flat, wordings.flat, strict=True)
        ]
        ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*commands, strict=True))  # [B * K, L]
        longest = int(mask.sum(1).max())
        pictures = torch.from_numpy(data.images[rows]).permute(0, 3, 1, 2).unsqueeze(1)  # [B, 1, 3, H, W]
        actions = data.actions[rows[:, None], goals].reshape(-1, *data.actions.shape[2:])
        state = data.state[rows] if self.config.state else np.zeros((len(rows), 0), np.float32)
        return Batch(
            images=normalise_pictures(pictures, self.config.cameras),
            state=torch.from_numpy(normalise(state, self.config.state) if self.config.state else state),
            input_ids=ids[:, :longest],
            attention_mask=mask[:, :longest],
            actions=torch.from_numpy(normalise(actions, self.space)),
            skill=torch.from_numpy(self._skills[goals.flatten()]),
            target=torch.from_numpy(TARGETS[goals.flatten()]),
            objects=torch.from_numpy(data.blocks[rows]),
            boxes=torch.from_numpy(data.boxes[rows]).unsqueeze(1),
            hand=torch.from_numpy(data.state[rows, :3]),
            done=torch.from_numpy(done(actions)),
            hand_points=torch.from_numpy(data.hand[rows]).unsqueeze(1),
            possible=torch.from_numpy(named.flatten() != NONE),
            shown=torch.ones(len(rows), dtype=torch.bool),
        )


def _choose(random: np.random.Generator, goals: np.ndarray, frames: int, commands: int) -> np.ndarray:
    """Draw goals: int64 [frames, commands]."""
    return goals[random.integers(len(goals), size=(frames, commands))]

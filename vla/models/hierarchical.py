"""Two levels: a planner chooses a skill and a place, the skill's controller makes the motions.

After Ahn et al. 2022, "Do As I Can, Not As I Say: Grounding Language in Robotic Affordances" (SayCan), and
Mees et al. 2022, "What Matters in Language Conditioned Robotic Imitation Learning over Unstructured Data"
(HULC): the planner reads pictures, command and state and says which skill of a library is called for and
where, as a point's offset from the hand in the robot's frame; the controller of that skill turns this offset
at two scales, state and what is seen into actions. Labels name the skill that is demonstrated and the point,
and each controller learns from its own skill's samples alone; when served the most probable skill acts.

Where the data says which steps a command still needs, `steps` of the configuration name them. A transformer
then answers all of them, and the first one takes the command's place for everything below it. It is answered
anew for every frame, so that the server keeps nothing and a step that failed is planned again.

The library's weights are stacked along a skill axis and each sample takes the answer of its own skill. Skills
may differ within a batch, and a trace keeps all of them: a Python branch on the chosen skill would be frozen
to that of the traced example.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.mlp import mlp
from vla.models.parts.offsets import REACH, missed_offset, scales
from vla.models.parts.read_out import Perception
from vla.models.parts.steps import StepPlanner
from vla_runtime.spec import Extra

# Planning steps costs as much as all else, and is learned sooner: one command in so many is planned for in
# training.
COMMANDS_PER_PLAN = 4


@dataclass(frozen=True)
class Config:
    """Sizes of the model and the names of its skills."""

    # The library. A skill that no demonstration shows is never chosen until one does.
    skills: tuple[str, ...] = ("reach", "pick", "push", "place", "navigate", "open")
    # Vision and text encoder; see `Perception`.
    word_width: int = 64
    channels: int = 32
    depth: int = 3
    queries: int = 4
    keypoints: int = 8
    # Width of the planner's hidden layer and of what it tells a controller besides the point.
    planner: int = 256
    plan: int = 32
    # Width of the controllers' two hidden layers.
    hidden: int = 128
    # Names of the steps, each of which begins with its skill; the last one means that nothing remains. Empty:
    # a command calls for one skill.
    steps: tuple[str, ...] = ()
    # The most steps of a plan; blocks and heads of the transformer that answers it.
    longest: int = 3
    layers: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("skills", "steps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives a list back
        unknown = [step for step in self.steps if step.split()[0] not in self.skills]
        if unknown:
            raise ValueError(
                f"steps must begin with one of the skills {', '.join(self.skills)}, got {unknown}"
            )

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(word_width=8, channels=8, depth=1, queries=2, keypoints=2, planner=16, plan=4, hidden=16)

    @classmethod
    def base(cls) -> Self:
        """For pictures and tasks richer than the tabletop; about four times the default's computation."""
        return cls(
            word_width=128,
            channels=64,
            depth=4,
            queries=8,
            keypoints=16,
            planner=512,
            plan=64,
            hidden=512,
        )


class Plan(NamedTuple):
    """What is planned for N commands, and what for."""

    situation: Tensor  # float32 [N, V + S], what is seen, and the state
    # float32 [N, 3], in units of `REACH`: from the hand to the point, and where the hand is.
    offset: Tensor
    hand: Tensor
    code: Tensor  # float32 [N, plan]
    attention: Tensor  # float32 [B, C, K * Q, P]

    @property
    def place(self) -> Tensor:
        """The point in the robot's frame, in units of `REACH`: float32 [N, 3]."""
        return self.hand + self.offset


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the summary.

    `act` also returns `skill` int64 [B], `skill_probability` float32 [B] and `target` float32 [B, 3], the
    point in the robot's frame [m]. With `steps` Lc is L, and it returns `plan` int64 [B, longest] and
    `plan_probability` float32 [B, longest] as well.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride.
    """

    privileged = ("skill", "target", "objects", "hand")

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        skills = len(config.skills)
        self.extras = {
            "skill": Extra(labels=config.skills),
            "skill_probability": Extra(),
            "target": Extra(unit="m"),
        }
        self.perception = Perception(
            sizes,
            width=config.word_width,
            channels=config.channels,
            depth=config.depth,
            queries=config.queries,
            keypoints=config.keypoints,
        )
        situation = self.perception.flat_size + sizes.state
        self.planner = mlp(situation + config.word_width, config.planner, 1, 3 + config.plan)
        self.skill_head = mlp(config.word_width, config.hidden, 1, skills)
        # The hand's place by the state, in units of `REACH`.
        self.hand_projection = nn.Linear(sizes.state, 3)
        inputs = situation + 6 + config.plan
        self.controllers = Controllers(skills, inputs, config.hidden, sizes.horizon * sizes.action)
        self.steps = Steps(config, sizes, self.perception.edge) if config.steps else None
        if self.steps is not None:
            labels = Extra(labels=config.steps)
            self.extras |= {"plan": labels, "plan_probability": Extra()}

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into queries: float32 [N, queries + 1, word_width], bool [N, queries + 1].

        With `steps`, into tokens: float32 [N, L, word_width], bool [N, L].
        """
        if self.steps is not None:
            words = self.perception.text_encoder.embedding(input_ids)
            return self.steps.planner.read(words), attention_mask.bool()
        return self.perception.encode_command(input_ids, attention_mask)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the chunk of the most probable skill, the plan, and the queries' mean attention."""
        features, more = self.perception.features(images), {}
        if self.steps is not None:
            scores = self.steps.planner(self.steps.planner.look(features), command, command_mask, state)
            probabilities, steps = torch.softmax(scores, dim=-1).max(-1)
            more = {"plan": steps, "plan_probability": probabilities}
            command = self._commanded(self.steps, steps[:, 0])
            probability, skill = probabilities[:, 0], self.steps.skill[steps[:, 0]]
        else:
            probability, skill = torch.softmax(self.skill_head(command[:, -1]), dim=-1).max(-1)
        plan = self._plan(features, command, state)
        return {
            "actions": self._control(plan, skill),
            "attention": self.perception.attention_map(plan.attention),
            "confidence": probability,
            "skill": skill,
            "skill_probability": probability,
            "target": plan.place * REACH,
            **more,
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return what planner, skill head and the demonstrated skills' controllers have to learn.

        The chunk's loss is the absolute distance, normalised: a gripper is open or closed, and the mean of
        both, which squared distances lead to where it is not sure which, is neither. The point's losses are
        squared distances; the skill's is in nats.
        """
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        features, state = self.perception.features(batch.images), batch.per_command(batch.state)
        if self.steps is not None and batch.plan is not None:
            read = slice(math.ceil(len(state) / COMMANDS_PER_PLAN))
            picture = batch.per_command(self.steps.planner.look(features))[read]
            scores = self.steps.planner(picture, command[read], mask[read], state[read])
            wanted = batch.plan[read].flatten()
            chosen = {"plan": functional.cross_entropy(scores.flatten(0, 1), wanted)}
            command = self._commanded(self.steps, batch.plan[:, 0])
        else:
            chosen = {"skill": 0.1 * functional.cross_entropy(self.skill_head(command[:, -1]), batch.skill)}
        plan = self._plan(features, command, state)
        which = batch.target[:, None, None].expand(-1, 1, 3)
        target = batch.per_command(batch.objects).gather(1, which).squeeze(1)  # [B * K, 3]
        hand = batch.per_command(batch.hand)
        return {
            "motion": functional.l1_loss(self._control(plan, batch.skill), batch.actions),
            "target": missed_offset(plan.offset, (target - hand) / REACH).mean(),
            "hand": functional.mse_loss(plan.hand, hand / REACH),
            **chosen,
        }

    def _plan(self, features: Tensor, command: Tensor, state: Tensor) -> Plan:
        """Plan for commands float32 [B * K, queries + 1, width]."""
        view = self.perception.view(features, command)
        situation = torch.cat([view.flat(), state], dim=-1)
        planned = self.planner(torch.cat([situation, command[:, -1]], dim=-1))
        return Plan(situation, planned[:, :3], self.hand_projection(state), planned[:, 3:], view.attention)

    def _commanded(self, steps: "Steps", step: Tensor) -> Tensor:
        """Return what stands for steps int64 [N] in a command's place: float32 [N, queries + 1, width]."""
        queries = self.perception.command_head(steps.embedding(step))
        return queries.unflatten(-1, (-1, self.perception.width))

    def _control(self, plan: Plan, skill: Tensor) -> Tensor:
        """Return the chunks float32 [N, T, A] of the skills' controllers, which do not get the command."""
        known = torch.cat([plan.situation, scales(plan.offset), plan.code], dim=-1)
        chunk = self.controllers(known, skill)
        return chunk.unflatten(-1, (self.sizes.horizon, self.sizes.action))


class Steps(nn.Module):
    """The planner of the steps that remain, and what stands for each step below it."""

    def __init__(self, config: Config, sizes: Sizes, edge: int) -> None:
        """Make them; `edge` is that of the feature map."""
        super().__init__()
        count = len(config.steps)
        self.planner = StepPlanner(
            sizes,
            width=config.word_width,
            channels=config.channels,
            edge=edge,
            layers=config.layers,
            heads=config.heads,
            steps=count,
            longest=config.longest,
        )
        self.embedding = nn.Embedding(count, config.word_width)
        # The skill that each step begins with: int64 [steps].
        skills = [config.skills.index(step.split()[0]) for step in config.steps]
        self.skill: Tensor
        self.register_buffer("skill", torch.tensor(skills), persistent=False)


class Controllers(nn.Module):
    """A perceptron for each skill, their weights stacked along a skill axis."""

    def __init__(self, skills: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        sizes = ((inputs, hidden), (hidden, hidden), (hidden, outputs))
        # Drawn as `nn.Linear` draws them.
        self.weights = nn.ParameterList(
            [nn.Parameter((torch.rand(skills, *size) * 2 - 1) * size[0] ** -0.5) for size in sizes]
        )
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(skills, size[1])) for size in sizes])

    def forward(self, values: Tensor, skill: Tensor) -> Tensor:
        """Return float32 [N, outputs] of values float32 [N, inputs] under skills int64 [N].

        All skills are computed and one is taken: the library is small, and gathering weights is slower.
        """
        skills = self.weights[0].shape[0]
        rows = values.unsqueeze(0).expand(skills, -1, -1)  # [skills, N, inputs]
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            rows = torch.baddbmm(bias.unsqueeze(1), functional.gelu(rows) if index else rows, weight)
        chosen = skill[None, :, None].expand(1, -1, rows.shape[-1])
        return rows.gather(0, chosen).squeeze(0)

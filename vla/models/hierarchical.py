"""Two levels: a planner chooses a skill and a place, the skill's controller makes the motions.

After Ahn et al. 2022, "Do As I Can, Not As I Say: Grounding Language in Robotic Affordances" (SayCan), and
Mees et al. 2022, "What Matters in Language Conditioned Robotic Imitation Learning over Unstructured Data"
(HULC): the planner reads pictures, command and state and says which skill of a library is called for and
where, as a point in the robot's frame; the controller of that skill turns point, state and what is seen into
actions. In labels name the skill that is demonstrated and the point, and each controller
learns from its own skill's samples alone; when served the most probable skill acts.

The library's weights are stacked along a skill axis and each sample takes the answer of its own skill. Skills
may differ within a batch, and a trace keeps all of them: a Python branch on the chosen skill would be frozen
to that of the traced example.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.mlp import mlp
from vla.models.parts.read_out import Perception
from vla_runtime.spec import Extra

# Length of a planned point's unit [m]: about what the arm reaches.
REACH = 0.2


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
    # Width of the planner's hidden layer and of its plan.
    planner: int = 256
    plan: int = 32
    # Width of the controllers' two hidden layers.
    hidden: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "skills", tuple(self.skills))  # JSON gives a list back

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


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the summary.

    `act` also returns `skill` int64 [B], `skill_probability` float32 [B] and `target` float32 [B, 3], the
    point in the robot's frame [m].

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride.
    """

    privileged = ("skill", "target", "objects")

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
        inputs = situation + 3 + config.plan
        self.controllers = Controllers(skills, inputs, config.hidden, sizes.horizon * sizes.action)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into queries: float32 [N, queries + 1, word_width], bool [N, queries + 1]."""
        return self.perception.encode_command(input_ids, attention_mask)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the chunk of the most probable skill, the plan, and the queries' mean attention."""
        situation, plan, attention = self._plan(images, command, state)
        probability, skill = torch.softmax(self.skill_head(command[:, -1]), dim=-1).max(-1)
        return {
            "actions": self._control(situation, plan, skill),
            "attention": self.perception.attention_map(attention),
            "confidence": probability,
            "skill": skill,
            "skill_probability": probability,
            "target": plan[:, :3] * REACH,
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return what planner, skill head and the demonstrated skills' controllers have to learn.

        The chunk's and the point's losses are squared distances, normalised; the skill's is in nats.
        """
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        situation, plan, _ = self._plan(batch.images, command, batch.per_command(batch.state))
        which = batch.target[:, None, None].expand(-1, 1, 3)
        target = batch.per_command(batch.objects).gather(1, which).squeeze(1)  # [B * K, 3]
        return {
            "motion": functional.mse_loss(self._control(situation, plan, batch.skill), batch.actions),
            "target": functional.mse_loss(plan[:, :3], target / REACH),
            "skill": 0.1 * functional.cross_entropy(self.skill_head(command[:, -1]), batch.skill),
        }

    def _plan(self, images: Tensor, command: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is seen and the state, [B * K, V + S], the plan, [B * K, 3 + plan], and attention."""
        view = self.perception(images, command)
        situation = torch.cat([view.flat(), state], dim=-1)
        return situation, self.planner(torch.cat([situation, command[:, -1]], dim=-1)), view.attention

    def _control(self, situation: Tensor, plan: Tensor, skill: Tensor) -> Tensor:
        """Return the chunks float32 [N, T, A] of the skills' controllers, which do not get the command."""
        chunk = self.controllers(torch.cat([situation, plan], dim=-1), skill)
        return chunk.unflatten(-1, (self.sizes.horizon, self.sizes.action))


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

"""Flow matching: a learned velocity carries noise to a chunk of actions in a few straight steps.

After Black et al. 2024, "pi0: A Vision-Language-Action Flow Model for General Robot Control"
(github.com/Physical-Intelligence/openpi): rectified flow (Lipman et al. 2023, "Flow Matching for Generative
Modeling"; Liu et al. 2023, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified
Flow") with times drawn towards the noise, an action expert whose tokens attend to the tokens of pictures,
command and state as well as to each other, the time mixed into every action token, Euler integration. Time 0
is noise and time 1 the chunk. The expert's context is computed once; the steps are unrolled, so that a trace
keeps them all, and the noise is an input.

With a `max_delay` it is trained for real-time chunking (Black, Ren, Equi & Levine 2025, "Training-Time Action
Conditioning for Efficient Real-Time Chunking", arXiv 2512.05964; Black, Galliker & Levine 2025, "Real-Time
Execution of Action Chunking Flow Policies", arXiv 2506.07339): the first actions of a chunk, which the robot
executes until the answer comes, are given, clean and at time 1, and the rest is denoised to follow them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.attention import Block
from vla.models.parts.denoising import TimeFeatures
from vla.models.parts.guidance import Kind, guided
from vla.models.parts.mlp import mlp
from vla.models.parts.read_out import Perception

# Times are drawn as 1 - u ** (1 / SKEW) of a uniform u, pi0's Beta(1.5, 1): the noisy end is harder.
SKEW = 1.5


@dataclass(frozen=True)
class Config:
    """Sizes of the model, and the steps of its integration."""

    # Vision and text encoder; see `Perception`.
    word_width: int = 64
    channels: int = 32
    depth: int = 3
    queries: int = 4
    keypoints: int = 8
    # Width, heads, perceptrons and blocks of the action expert.
    width: int = 64
    heads: int = 4
    inner: int = 128
    layers: int = 2
    # Euler steps from noise to actions.
    steps: int = 5
    # Times that each sample of a batch is trained at.
    draws: int = 2
    # Most given actions that a chunk may begin with [control steps]; 0: none are taken.
    max_delay: int = 0
    # How a model that was not trained for given actions is drawn towards them; None: it was, or takes none.
    guidance: Kind | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.max_delay < 0:
            raise ValueError(f"max_delay must be 0 or more, got {self.max_delay}")
        if self.guidance and not self.max_delay:
            raise ValueError(f"guidance {self.guidance!r} needs a max_delay of 1 or more")

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            word_width=8,
            channels=8,
            depth=1,
            queries=2,
            keypoints=2,
            width=16,
            heads=2,
            inner=16,
            layers=1,
            steps=3,
        )

    @classmethod
    def base(cls) -> Self:
        """An action expert of pi0's depth and steps, half its width."""
        return cls(
            word_width=128,
            channels=64,
            depth=4,
            queries=8,
            keypoints=16,
            width=512,
            heads=8,
            inner=2048,
            layers=18,
            steps=10,
        )


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the summary.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or all of a chunk may be given.
    """

    stochastic = True

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        if config.max_delay >= sizes.horizon:
            raise ValueError(f"max_delay must be less than {sizes.horizon} steps, got {config.max_delay}")
        self.config, self.sizes, self.max_delay = config, sizes, config.max_delay
        self.perception = Perception(
            sizes,
            width=config.word_width,
            channels=config.channels,
            depth=config.depth,
            queries=config.queries,
            keypoints=config.keypoints,
        )
        width, inputs = config.width, self.perception.flat_size + config.word_width + sizes.state
        self.visual_projection = nn.Linear(self.perception.query_size, width)
        self.visual_embedding = nn.Parameter(0.02 * torch.randn(sizes.cameras * config.queries, width))
        self.state_embedding = mlp(inputs, 2 * width, 1, width)
        self.time_features = TimeFeatures()
        self.action_projection = mlp(sizes.action + TimeFeatures.size, width, 1, width)
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(sizes.horizon, width))
        self.blocks = nn.ModuleList(
            [Block(width, config.heads, config.inner, attends="both") for _ in range(config.layers)]
        )
        self.velocity_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sizes.action))

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into queries: float32 [N, queries + 1, word_width], bool [N, queries + 1]."""
        return self.perception.encode_command(input_ids, attention_mask)

    def act(
        self,
        images: Tensor,
        command: Tensor,
        command_mask: Tensor,
        state: Tensor,
        noise: Tensor,
        *given: Tensor,
    ) -> dict[str, Tensor]:
        """Return the normalised chunk that the noise flows to, and the queries' mean attention.

        `given` are `prefix` and `delay`, for a model with a `max_delay`.
        """
        context, attention = self._context(images, command, state)
        prefix, delay = given or (noise, torch.zeros_like(noise[:, 0, 0]))
        known = self._known(delay)
        chunk = (self._guided if self.config.guidance else self._trained)(noise, context, prefix, known)
        chunk = torch.where(known.unsqueeze(-1), prefix, chunk)
        return {"actions": chunk, "attention": self.perception.attention_map(attention)}

    @property
    def differentiates(self) -> bool:
        """Whether `act` takes gradients; see `export.source.ExportableModel`."""
        return self.config.guidance == "vjp"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared distance of the velocity from the straight one between noise and chunk.

        As many actions as each sample's drawn delay are given, and not part of it.
        """
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        context, _ = self._context(batch.images, command, batch.per_command(batch.state))
        draws = self.config.draws
        context = context.repeat_interleave(draws, 0)
        actions = batch.actions.repeat_interleave(draws, 0)
        noise = torch.randn_like(actions)
        share = 1 - torch.rand_like(actions[:, 0, 0]) ** (1 / SKEW)
        known = self._known(torch.randint(self.max_delay + 1, (len(actions),), device=actions.device))
        time = torch.where(known, 1.0, share[:, None])
        noisy = time.unsqueeze(-1) * actions + (1 - time).unsqueeze(-1) * noise
        velocity = self._velocity(noisy, time, context)
        return {"velocity": functional.mse_loss(velocity[~known], (actions - noise)[~known])}

    def _trained(self, chunk: Tensor, context: Tensor, prefix: Tensor, known: Tensor) -> Tensor:
        """Carry noise to a chunk, its given actions clean and at time 1 throughout."""
        steps = self.config.steps
        for step in range(steps):
            chunk = torch.where(known.unsqueeze(-1), prefix, chunk)
            time = torch.where(known, 1.0, step / steps)
            chunk = chunk + self._velocity(chunk, time, context) / steps
        return chunk

    def _guided(self, chunk: Tensor, context: Tensor, prefix: Tensor, known: Tensor) -> Tensor:
        """Carry noise to a chunk that is drawn towards its given actions."""
        steps, kind = self.config.steps, self.config.guidance
        assert kind is not None
        if torch.is_inference_mode_enabled() and kind == "vjp":
            # Autograd takes no tensor of inference mode.
            with torch.inference_mode(mode=False), torch.no_grad():
                return self._guided(*(value.clone() for value in (chunk, context, prefix, known)))
        for step in range(steps):
            time = step / steps
            velocity = partial(self._at, time, context)
            change = guided(kind, velocity, chunk, time, prefix=prefix, known=known)
            chunk = chunk + change / steps
        return chunk

    def _at(self, time: float, context: Tensor, chunk: Tensor) -> Tensor:
        """Return the velocity of a chunk [N, T, A] whose actions all are at one time."""
        return self._velocity(chunk, torch.full_like(chunk[..., 0], time), context)

    def _known(self, delay: Tensor) -> Tensor:
        """Return which actions are given, bool [N, T], for delays [N]: the first of each chunk."""
        return torch.arange(self.sizes.horizon, device=delay.device) < delay.unsqueeze(-1)

    def _context(self, images: Tensor, command: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expert's context, float32 [B * K, C * queries + 1, width], and the attention."""
        view = self.perception(images, command)
        visual = self.visual_projection(view.queries) + self.visual_embedding
        features = torch.cat([view.flat(), command[:, -1], state], dim=-1)
        return torch.cat([visual, self.state_embedding(features).unsqueeze(1)], dim=1), view.attention

    def _velocity(self, chunk: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Return the velocity float32 [N, T, A] of a chunk, its actions at times float32 [N, T] in [0, 1]."""
        features = self.time_features(time)
        tokens = self.action_projection(torch.cat([chunk, features], dim=-1)) + self.positional_embedding
        for block in self.blocks:
            tokens = block(tokens, context)
        return self.velocity_head(tokens)

"""A planner that says which steps remain, after what a picture shows and a command asks for.

After Driess et al. 2023, "PaLM-E: An Embodied Multimodal Language Model": words, state and picture are tokens
of one transformer. All steps are answered at once, one a learned query.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Sizes
from vla.models.parts.attention import Block

# Positions of the feature map, along each edge, that one token of the picture stands for.
POOL = 2


class StepPlanner(nn.Module):
    """Queries, one for each step of the plan, and words attend to each other and to the picture."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        width: int,
        channels: int,
        edge: int,
        layers: int,
        heads: int,
        steps: int,
        longest: int,
    ) -> None:
        """Make the planner.

        Args:
            sizes: the policy's sizes
            width: of a token, and of a word's embedding
            channels: of the feature map
            edge: positions along the map's edge, an even number
            layers: of the transformer
            heads: of its attention
            steps: that there are
            longest: k, the most steps of a plan
        """
        super().__init__()
        self.edge = edge
        self.picture_projection = nn.Linear(channels, width)
        positions = sizes.cameras * (edge // POOL) ** 2
        self.picture_embedding = nn.Parameter(0.02 * torch.randn(positions, width))
        self.word_embedding = nn.Parameter(0.02 * torch.randn(sizes.context_length, width))
        self.queries = nn.Parameter(0.02 * torch.randn(longest, width))
        self.state_projection = nn.Linear(sizes.state, width) if sizes.state else None
        blocks = [Block(width, heads, 4 * width, attends="both") for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, steps)

    def read(self, words: Tensor) -> Tensor:
        """Give words their places: float32 [N, L, width] to the same."""
        return words + self.word_embedding[: words.shape[1]]

    def look(self, features: Tensor) -> Tensor:
        """Turn feature maps float32 [B, C, P, channels] into the picture's tokens float32 [B, Q, width]."""
        maps = features.flatten(0, 1).transpose(1, 2).unflatten(-1, (self.edge, self.edge))
        pooled = functional.avg_pool2d(maps, POOL).flatten(2).transpose(1, 2)
        picture = pooled.unflatten(0, features.shape[:2]).flatten(1, 2)
        return self.picture_projection(picture) + self.picture_embedding

    def forward(self, picture: Tensor, words: Tensor, mask: Tensor, state: Tensor) -> Tensor:
        """Return the scores of every step at each place of the plan.

        Args:
            picture: float32 [N, Q, width], from `look`
            words: float32 [N, L, width], from `read`
            mask: bool [N, L], the words there are
            state: float32 [N, S], normalised

        Returns:
            float32 [N, k, steps]
        """
        queries = self.queries.expand(words.shape[0], -1, -1)
        if self.state_projection is not None:
            queries = queries + self.state_projection(state).unsqueeze(1)
        tokens = torch.cat([queries, words], dim=1)
        always = torch.ones_like(torch.cat([picture, queries], dim=1)[..., 0], dtype=torch.bool)
        seen = torch.cat([always, mask], dim=1)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, picture, seen)
        return self.head(self.norm(tokens[:, : len(self.queries)]))

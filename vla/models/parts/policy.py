"""The policy that several architectures are: they differ in the tower and the text encoder they give it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.mlp import ActionHead
from vla.models.parts.read_out import QueryReadOut
from vla.models.parts.towers import Tower, edge_of, encode_images


@dataclass(frozen=True)
class QueryConfig:
    """Sizes of what a `QueryPolicy` adds to its tower and its text encoder."""

    # Queries that the command makes; their attention is reported.
    queries: int = 4
    # Features that a query reads.
    features: int = 16
    # Width and hidden layers of the action head.
    hidden: int = 256
    layers: int = 2
    # Whether an action is one of several symbols, of which the head answers logits.
    symbolic: bool = False


class QueryPolicy(PolicyModel[QueryConfig]):
    """Queries from the command's vector read a tower's feature map; an action head makes a chunk of it.

    See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the command's vector.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride.
    """

    masked = True

    def __init__(
        self, config: QueryConfig, sizes: Sizes, tower: Tower, text_encoder: nn.Module, width: int
    ) -> None:
        """Put the parts together.

        Args:
            config: of the model
            sizes: of the policy
            tower: float32 [N, 3, H, W] -> float32 [N, channels, h, w]
            text_encoder: int64 [N, L] twice, tokens and mask -> float32 [N, width]
            width: of the command's vector
        """
        super().__init__()
        self.config, self.sizes = config, sizes
        self.tower, self.text_encoder = tower, text_encoder
        edge = edge_of(sizes.image_size, tower.stride)
        self.read_out = QueryReadOut(
            sizes.cameras, edge, tower.channels, width, queries=config.queries, features=config.features
        )
        inputs = self.read_out.size + sizes.state + width
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the text and make queries of it: float32 [N, queries + 1, width], bool [N, queries + 1]."""
        vector = self.text_encoder(input_ids, attention_mask)
        command = torch.cat([self.read_out.make_queries(vector), vector.unsqueeze(1)], dim=1)
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk, or logits, and the queries' mean attention."""
        chunk, weights = self._decode(images, command, state)
        output = "logits" if self.config.symbolic else "actions"
        return {output: chunk, "attention": self.read_out.attention_map(weights)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised.

        Of symbols, the cross-entropy [nats].
        """
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        chunk, _ = self._decode(batch.images, command, batch.per_command(batch.state))
        if batch.symbols is not None:
            return {"symbols": functional.cross_entropy(chunk.flatten(0, 1), batch.symbols.flatten())}
        return {"actions": batch.squared_error(chunk)}

    def _decode(self, images: Tensor, command: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return chunks float32 [B * K, T, A] and the attention, float32 [B, C, K * queries, P]."""
        seen, weights = self.read_out(encode_images(self.tower, images), command[:, :-1])
        return self.action_head(seen, state, command[:, -1]), weights

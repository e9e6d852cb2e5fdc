"""Attention queries made from the command read a convolutional feature map.

The command's word embeddings are averaged (Joulin et al. 2017, "Bag of Tricks for Efficient Text
Classification") and become a few queries. Each query attends over the map and reports where it looks, by the
spatial soft arg-max of Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies", and what it
sees there. These, keypoints that do not depend on the command, the state and a summary of the command decide
the actions. To tell colours apart after a few hundred demonstrations it needs several commands for each
frame.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.mlp import ActionHead
from vla.models.parts.read_out import Perception


@dataclass(frozen=True)
class Config:
    """Sizes of the model; the vocabulary's table dominates its parameters."""

    # Width of a word's vector.
    word_width: int = 64
    # Channels of the feature map.
    channels: int = 32
    # 3 x 3 convolutions after the first, strided one.
    convolutions: int = 3
    # Queries that the command makes; their attention is reported.
    queries: int = 4
    # Keypoints that do not depend on the command.
    keypoints: int = 8
    # Width and hidden layers of the action decoder.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(word_width=8, channels=8, convolutions=1, queries=2, keypoints=2, hidden=16, layers=1)

    @classmethod
    def base(cls) -> Self:
        """For pictures and tasks richer than the tabletop; about four times the default's computation."""
        return cls(word_width=128, channels=64, convolutions=4, queries=8, keypoints=16, hidden=512)


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the summary.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride.
    """

    masked = True

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.perception = Perception(
            sizes,
            width=config.word_width,
            channels=config.channels,
            depth=config.convolutions,
            queries=config.queries,
            keypoints=config.keypoints,
        )
        inputs = self.perception.flat_size + sizes.state + config.word_width
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into queries: float32 [N, queries + 1, word_width], bool [N, queries + 1]."""
        return self.perception.encode_command(input_ids, attention_mask)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the queries' mean attention."""
        actions, weights = self._decode(images, command, state)
        return {"actions": actions, "attention": self.perception.attention_map(weights)}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised.

        A median would leave the fingers open, for they close in few frames; a mean does not.
        """
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        actions, _ = self._decode(batch.images, command, batch.per_command(batch.state))
        return {"actions": batch.squared_error(actions)}

    def _decode(self, images: Tensor, command: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return chunks float32 [B * K, T, A] and the attention, float32 [B, C, K * queries, P]."""
        view = self.perception(images, command)
        return self.action_head(view.flat(), state, command[:, -1]), view.attention

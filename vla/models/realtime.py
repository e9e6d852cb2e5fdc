"""Little to do for a frame: the first layers of MobileNetV2, an LSTM over the words, a direct action head.

The LSTM (Hochreiter & Schmidhuber 1997, "Long Short-Term Memory") runs once a command and is cached by the
server, so that a frame costs the layers of MobileNetV2 (Sandler et al. 2018, "MobileNetV2: Inverted Residuals
and Linear Bottlenecks") up to stride 8, a handful of dot products and a small perceptron. These are the
fewest operations of all architectures, though not the shortest time everywhere (docs/comparison.md). Queries
that the command makes attend over the map: pooled features would lose where a thing is.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from vla.models import Sizes
from vla.models.parts.policy import QueryConfig, QueryPolicy
from vla.models.parts.published_towers import MobileNet
from vla.models.parts.text import Lstm


@dataclass(frozen=True)
class Config(QueryConfig):
    """Sizes of the model."""

    published: ClassVar[dict[str, str]] = {"mobilenet_v2": "checkpoint"}

    # Scales MobileNetV2's channels; 1 is the published size.
    multiplier: float = 0.35
    # Its inverted residuals, 3 to 5: up to the first or the last of stride 8.
    blocks: int = 3
    # Local folder of a pretrained MobileNetV2 as transformers saves it; None: fresh weights.
    checkpoint: str | None = None
    # Width and layers of the LSTM, and width of the attention.
    word_width: int = 64
    lstm_layers: int = 1
    # Width of the action head.
    hidden: int = 128

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(multiplier=0.2, word_width=8, queries=2, features=4, hidden=16, layers=1)

    @classmethod
    def base(cls) -> Self:
        """MobileNetV2's published width, for which pretrained weights exist, under an LSTM of width 256."""
        return cls(multiplier=1.0, blocks=5, word_width=256, queries=8, features=32, hidden=256)


class Model(QueryPolicy):
    """See `QueryPolicy`; the command's vector is the LSTM's.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the checkpoint does not fit.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        tower = MobileNet(config.multiplier, config.blocks, config.checkpoint)
        text_encoder = Lstm(sizes.vocabulary, config.word_width, config.lstm_layers)
        super().__init__(replace(config, checkpoint=None), sizes, tower, text_encoder, config.word_width)

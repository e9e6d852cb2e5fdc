"""The model that trains in little memory: EfficientNet-B0 and a DistilBERT, recomputed instead of remembered.

EfficientNet (Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks") up to
stride 8 or 16 and DistilBERT (Sanh et al. 2019, "DistilBERT, a distilled version of BERT"), transformers'
own; queries from the command attend over the map and tell where they look. In training every block keeps its
input alone and computes the rest again on the way back (Chen et al. 2016, "Training Deep Nets with Sublinear
Memory Cost"), for about a third more time.
"""

from dataclasses import dataclass, replace
from typing import Self

from vla.models import Sizes
from vla.models.parts.distilbert import DistilBert
from vla.models.parts.policy import QueryConfig, QueryPolicy
from vla.models.parts.published_towers import EfficientNet


@dataclass(frozen=True)
class Config(QueryConfig):
    """Sizes of the model."""

    # Scales EfficientNet-B0's channels; 1 as published.
    multiplier: float = 0.35
    # How many of its seven stages; 3 end at stride 8, 5 at stride 16.
    stages: int = 3
    # Local folder of a pretrained EfficientNet-B0 as transformers saves it; None: fresh weights.
    checkpoint: str | None = None
    # Compute again in training instead of remembering.
    recompute: bool = True
    # DistilBERT's width, layers, heads and perceptrons.
    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 4
    text_inner: int = 128

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            multiplier=0.25,
            text_width=8,
            text_layers=1,
            text_heads=2,
            text_inner=16,
            queries=2,
            features=4,
            hidden=16,
            layers=1,
        )

    @classmethod
    def base(cls) -> Self:
        """EfficientNet-B0 up to stride 16 and DistilBERT, of the published widths."""
        return cls(
            multiplier=1.0,
            stages=5,
            text_width=768,
            text_layers=6,
            text_heads=12,
            text_inner=3072,
            queries=8,
            features=32,
            hidden=512,
        )


class Model(QueryPolicy):
    """See `QueryPolicy`; the command's vector is DistilBERT's.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, the checkpoint does not fit, or
            EfficientNet has no so many stages.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        tower = EfficientNet(config.multiplier, config.stages, config.checkpoint, recompute=config.recompute)
        text_encoder = DistilBert(
            sizes.vocabulary,
            sizes.context_length,
            config.text_width,
            layers=config.text_layers,
            heads=config.text_heads,
            mlp_width=config.text_inner,
        )
        if config.recompute:
            text_encoder.recompute()
        super().__init__(replace(config, checkpoint=None), sizes, tower, text_encoder, config.text_width)

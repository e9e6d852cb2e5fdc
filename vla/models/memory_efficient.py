"""The model that trains in little memory: EfficientNet-B0 and a DistilBERT, recomputed instead of remembered.

EfficientNet (Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks") up to
stride 8 or 16 and DistilBERT (Sanh et al. 2019, "DistilBERT, a distilled version of BERT"), transformers'
own; queries from the command attend over the map and tell where they look. In training every block keeps its
input alone and computes the rest again on the way back (Chen et al. 2016, "Training Deep Nets with Sublinear
Memory Cost"), for about a third more time.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from vla.models import Sizes
from vla.models.parts.distilbert import DistilBertPolicyConfig
from vla.models.parts.policy import QueryPolicy
from vla.models.parts.published_towers import EfficientNet


@dataclass(frozen=True)
class Config(DistilBertPolicyConfig):
    """Sizes of the model."""

    published: ClassVar[dict[str, str]] = {"efficientnet": "checkpoint", "distilbert": "text_checkpoint"}

    # How many of EfficientNet-B0's seven stages; 3 end at stride 8, 5 at stride 16.
    stages: int = 3
    # Compute again in training instead of remembering.
    recompute: bool = True

    @classmethod
    def base(cls) -> Self:
        """EfficientNet-B0 up to stride 16 and DistilBERT, of the published widths."""
        return replace(super().base(), stages=5)


class Model(QueryPolicy):
    """See `QueryPolicy`; the command's vector is DistilBERT's.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, the checkpoint does not fit, or
            EfficientNet has no so many stages.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        tower = EfficientNet(config.multiplier, config.stages, config.checkpoint, recompute=config.recompute)
        text_encoder = config.text_encoder(sizes)
        if config.recompute:
            text_encoder.recompute()
        made = replace(config, checkpoint=None, text_checkpoint=None)
        super().__init__(made, sizes, tower, text_encoder, config.text_width)

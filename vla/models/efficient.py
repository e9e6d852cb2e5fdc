"""The small student: MobileNetV2 and a DistilBERT, made to be taught by a larger policy.

MobileNetV2 (Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks") up to stride 8 and
DistilBERT (Sanh et al. 2019, "DistilBERT, a distilled version of BERT"), transformers' own; queries from the
command attend over the map and tell where they look. `python -m vla.training --teacher CHECKPOINT` mixes a
larger policy's actions into the targets (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network");
nothing here knows of the teacher.

The last map of MobileNetV2, of stride 32, and its pooled features are not used: they have forgotten where
things are.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from vla.models import Sizes
from vla.models.parts.distilbert import DistilBertPolicyConfig
from vla.models.parts.policy import QueryPolicy
from vla.models.parts.published_towers import MobileNet, reset_weights


@dataclass(frozen=True)
class Config(DistilBertPolicyConfig):
    """Sizes of the model."""

    published: ClassVar[dict[str, str]] = {"mobilenet_v2": "checkpoint", "distilbert": "text_checkpoint"}

    # Inverted residuals of MobileNetV2, 3 to 5: up to the first or the last of stride 8.
    blocks: int = 4

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return replace(super().tiny(), multiplier=0.1)

    @classmethod
    def base(cls) -> Self:
        """MobileNetV2 and DistilBERT of the published sizes."""
        return replace(super().base(), blocks=5)


class Model(QueryPolicy):
    """See `QueryPolicy`; the command's vector is DistilBERT's.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the checkpoint does not fit.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        tower = MobileNet(config.multiplier, config.blocks, config.checkpoint)
        if config.checkpoint is None:
            reset_weights(tower)
        text_encoder = config.text_encoder(sizes)
        made = replace(config, checkpoint=None, text_checkpoint=None)
        super().__init__(made, sizes, tower, text_encoder, config.text_width)

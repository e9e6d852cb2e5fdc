"""Published towers, transformers' own: ResNet-18, MobileNetV2, EfficientNet-B0.

They are cut before they become too coarse to tell where a thing is; their weights are fresh, or those of a
local folder.
"""

import json
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from transformers import (
    EfficientNetConfig,
    EfficientNetModel,
    MobileNetV2Config,
    MobileNetV2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
)
from transformers.models.efficientnet.modeling_efficientnet import round_filters

from vla.models.parts.published_files import load_published
from vla.models.parts.towers import Convolutions, Tower

# Share of a batch's statistics in the running ones. transformers' MobileNetV2 has TensorFlow's 0.997 and its
# EfficientNet 0.99, which mean the opposite in torch: evaluation would use those of the last batch alone.
MOMENTUM = 0.1
RESNET_STRIDES, MOBILENET_STRIDE = (4, 8, 16, 32), 8
# Inverted residuals of MobileNetV2 up to the first and to the last of stride 8.
MOBILENET_BLOCKS = (3, 5)
# Strides of EfficientNet-B0's stages, the stem's included, and their blocks.
EFFICIENTNET_STRIDES, EFFICIENTNET_BLOCKS = (2, 4, 8, 16, 16, 32, 32), (1, 2, 2, 3, 3, 4, 1)

# What changes a tower's answers and not the shapes of its weights.
COMPUTES = {
    "resnet": ("hidden_act", "layer_type", "downsample_in_first_stage"),
    "mobilenet_v2": ("hidden_act", "output_stride", "tf_padding", "layer_norm_eps"),
    "efficientnet": ("hidden_act", "strides", "kernel_sizes", "batch_norm_eps"),
}

Backbone = Literal["convolutions", "resnet"]


class ResNet(Tower):
    """The first stages of ResNet-18, whose stages have 64, 128, 256 and 512 channels.

    He et al. 2016, "Deep Residual Learning for Image Recognition".
    """

    def __init__(self, channels: int, stages: int, checkpoint: str | None) -> None:
        """Make the tower.

        Args:
            channels: channels of the first stage, doubled in each that follows; 64 as published
            stages: 1 to 4, of stride 4, 8, 16 and 32
            checkpoint: local folder of a ResNet-18 as transformers saves it; None: fresh weights

        Raises:
            ValueError: the checkpoint is that of a ResNet of another size.
            OSError: the checkpoint's folder is missing or holds no model.
        """
        super().__init__()
        sizes = [channels << stage for stage in range(4)]
        config = ResNetConfig(
            embedding_size=channels, hidden_sizes=sizes, depths=[2, 2, 2, 2], layer_type="basic"
        )
        whole = _filled(ResNetModel(config), checkpoint)
        self.embedder, self.stages = whole.embedder, whole.encoder.stages[:stages]
        self.channels, self.stride = whole.config.hidden_sizes[stages - 1], RESNET_STRIDES[stages - 1]

    def forward(self, pictures: Tensor) -> Tensor:
        """See `Tower`."""
        features = self.embedder(pictures)
        for stage in self.stages:
            features = stage(features)
        return features


class MobileNet(Tower):
    """MobileNetV2 up to stride 8: at most a good third of its computation.

    Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks".
    """

    def __init__(self, multiplier: float, blocks: int, checkpoint: str | None) -> None:
        """Make the tower.

        Args:
            multiplier: scales the number of channels; 1 as published
            blocks: inverted residuals after the stem, of which those from 3 to 5 end at stride 8
            checkpoint: local folder of a MobileNetV2 as transformers saves it; None: fresh weights

        Raises:
            ValueError: the tower ends at another stride, or the checkpoint is of another size.
            OSError: the checkpoint's folder is missing or holds no model.
        """
        super().__init__()
        if not MOBILENET_BLOCKS[0] <= blocks <= MOBILENET_BLOCKS[1]:
            raise ValueError(f"blocks must be from 3 to 5, where the stride is 8, got {blocks}")
        whole = _filled(MobileNetV2Model(MobileNetV2Config(depth_multiplier=multiplier)), checkpoint)
        self.stem, self.blocks = whole.conv_stem, whole.layer[:blocks]
        self.channels = self.blocks[-1].reduce_1x1.convolution.out_channels
        self.stride = MOBILENET_STRIDE
        _set_momentum(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """See `Tower`."""
        features = self.stem(pictures)
        for block in self.blocks:
            features = block(features)
        return features


class EfficientNet(Tower):
    """The first stages of EfficientNet-B0.

    Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks".
    """

    def __init__(self, multiplier: float, stages: int, checkpoint: str | None, *, recompute: bool) -> None:
        """Make the tower.

        Args:
            multiplier: scales the number of channels; 1 as published
            stages: 1 to 7; 3 end at stride 8, 5 at stride 16
            checkpoint: local folder of an EfficientNet-B0 as transformers saves it; None: fresh weights
            recompute: in training keep the inputs of the blocks alone and compute the rest again on the way
                back; as a block runs twice then, its norm sees each batch twice

        Raises:
            ValueError: there are no so many stages, or the checkpoint is of another size.
            OSError: the checkpoint's folder is missing or holds no model.
        """
        super().__init__()
        most = len(EFFICIENTNET_STRIDES)
        if not 1 <= stages <= most:
            raise ValueError(f"stages must be from 1 to {most}, got {stages}")
        # The width after the last stage, which is not used; a checkpoint has it scaled.
        top = (
            1280
            if checkpoint is None
            else round_filters(EfficientNetConfig(width_coefficient=multiplier), 1280)
        )
        values = {"depth_coefficient": 1.0, "hidden_dim": top, "drop_connect_rate": 0.0}
        config = EfficientNetConfig(width_coefficient=multiplier, **values)
        whole = _filled(EfficientNetModel(config), checkpoint)
        if checkpoint is None:
            reset_weights(whole)
        blocks = sum(EFFICIENTNET_BLOCKS[:stages])
        self.stem, self.blocks = whole.embeddings, whole.encoder.blocks[:blocks]
        self.channels = self.blocks[-1].projection.project_conv.out_channels
        self.stride = EFFICIENTNET_STRIDES[stages - 1]
        self.recompute = recompute
        _set_momentum(self)

    def forward(self, pictures: Tensor) -> Tensor:
        """See `Tower`."""
        features = self.stem(pictures)
        for block in self.blocks:
            if self.recompute and self.training:
                features = recomputed(block, features, use_reentrant=False)
            else:
                features = block(features)
        return features


def make_tower(backbone: Backbone, channels: int, depth: int, stride: int, checkpoint: str | None) -> Tower:
    """Make convolutions of `stride`, or a ResNet, whose `depth` in stages decides its stride.

    Raises:
        ValueError, OSError: see the towers.
    """
    if backbone == "resnet":
        return ResNet(channels, depth, checkpoint)
    return Convolutions(channels, stride, depth)


def reset_weights(tower: nn.Module) -> None:
    """Draw a tower's weights as torch does.

    transformers draws those of its convolutional towers with a deviation of 0.02, EfficientNet's norms among
    them: so small that the learning rates of training from scratch tear them apart.
    """
    for module in tower.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()


def _set_momentum(tower: nn.Module) -> None:
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = MOMENTUM


def _filled(model: PreTrainedModel, checkpoint: str | None) -> Any:
    """Return a model with the weights of a local checkpoint, if one is given.

    Raises:
        ValueError: the checkpoint is of another kind, or of a model that computes otherwise.
    """
    if checkpoint is not None:
        found = load_published(type(model), Path(checkpoint))
        for name in COMPUTES[found.config.model_type]:
            theirs, ours = (getattr(each.config, name) for each in (found, model))
            # A list in a file may be a tuple in a default.
            if json.dumps(theirs) != json.dumps(ours):
                raise ValueError(f"{checkpoint} has {name} {theirs}; the tower that takes it has {ours}")
        try:
            model.load_state_dict(found.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{checkpoint} does not fit a {type(model).__name__}: {error}") from error
    return model

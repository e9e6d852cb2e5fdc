"""The model that trains in little memory: EfficientNet-B0 and a DistilBERT, recomputed instead of remembered.

EfficientNet (Tan & Le 2019) up to stride 8 or 16 and DistilBERT (Sanh et al. 2019), transformers' own;
queries from the command attend over the map and tell where they look. In training every block keeps its input
alone and computes the rest again on the way back (gradient checkpointing, Chen et al. 2016), for about a
third more time.

The usual sketch calls a method for it that transformers' EfficientNet does not have, and pools the last map,
of stride 32, which has forgotten where things are. Its momentum of 0.99 in the norms is TensorFlow's, which
torch reads the other way round; here it is 0.1. As a block runs twice, its norm sees each batch twice.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import EfficientNetConfig, EfficientNetModel

from vla.models import Batch, Sizes
from vla.models.distilbert import DistilBert
from vla.models.language import Summary
from vla.models.spatial import attend, grid, multilayer, read_out
from vla.models.vision import MOMENTUM, edge_of, restart, to_cells

# Strides of EfficientNet-B0's stages, the stem's included, and their blocks.
STRIDES, BLOCKS = (2, 4, 8, 16, 16, 32, 32), (1, 2, 2, 3, 3, 4, 1)


@dataclass(frozen=True)
class Config:
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
    # Queries that the command makes; their attention is reported.
    queries: int = 4
    # Features that a query reports of what it sees.
    features: int = 16
    # Width and hidden layers of the action decoder.
    hidden: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.stages <= len(STRIDES):
            raise ValueError(f"stages must be from 1 to {len(STRIDES)}, got {self.stages}")

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


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is `queries` + 1: the queries, then the summary.

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the checkpoint does not fit.
        OSError: the checkpoint's folder is missing or holds no model.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = replace(config, checkpoint=None), sizes
        width = config.text_width
        self.edge = edge_of(sizes.image_size, STRIDES[config.stages - 1])
        self.tower = EfficientNet(config)
        self.text = DistilBert(
            sizes.vocabulary,
            sizes.context_length,
            width=width,
            layers=config.text_layers,
            heads=config.text_heads,
            inner=config.text_inner,
        )
        if config.recompute:
            bert = self.text.bert
            # Its name before transformers 5.20.
            getattr(bert, "activation_checkpointing_enable", bert.gradient_checkpointing_enable)()
        self.summarise = Summary(width)
        self.ask = multilayer(width, 2 * width, 1, config.queries * width)
        self.keys = nn.Linear(self.tower.channels, width)
        self.values = nn.Linear(self.tower.channels, config.features)
        self.centres: Tensor
        self.register_buffer("centres", grid(self.edge, self.edge), persistent=False)
        seen = sizes.cameras * config.queries * (2 + config.features)
        outputs = sizes.horizon * sizes.action
        self.decide = multilayer(seen + sizes.state + width, config.hidden, config.layers, outputs)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run DistilBERT and make queries: float32 [N, queries + 1, text_width], bool [N, queries + 1]."""
        summary, _ = self.summarise(self.text(input_ids, attention_mask), attention_mask.bool())
        queries = self.ask(summary).unflatten(-1, (self.config.queries, -1))
        command = torch.cat([queries, summary.unsqueeze(1)], dim=1)
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk and the queries' mean attention."""
        seen, weights = self._look(images, command[:, :-1], told=1)
        attention = weights.mean(2).unflatten(-1, (self.edge, self.edge))
        return {"actions": self._decide(seen, command, state), "attention": attention}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        told = batch.commands_per_frame
        queries = command[:, :-1].reshape(len(batch.images), -1, command.shape[-1])
        seen, _ = self._look(batch.images, queries, told)
        actions = self._decide(seen, command, batch.state.repeat_interleave(told, 0))
        return {"actions": functional.mse_loss(actions, batch.actions)}

    def _look(self, images: Tensor, queries: Tensor, told: int) -> tuple[Tensor, Tensor]:
        """Look at each frame with the queries [B, K * Q, D] of its K = `told` commands.

        Returns:
            what each command sees, float32 [B * K, V], and the attention, float32 [B, C, K * Q, P]
        """
        cells = to_cells(self.tower, images)  # [B, C, P, channels]
        weights = attend(queries, self.keys(cells))
        return read_out(weights, self.values(cells), self.centres, told).flatten(0, 1), weights

    def _decide(self, seen: Tensor, command: Tensor, state: Tensor) -> Tensor:
        known = torch.cat([seen, state, command[:, -1]], dim=-1)
        return self.decide(known).unflatten(-1, (self.sizes.horizon, self.sizes.action))


class EfficientNet(nn.Module):
    """The first stages of EfficientNet-B0."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.recompute = config.recompute
        values = {"depth_coefficient": 1.0, "hidden_dim": 1280, "drop_connect_rate": 0.0}
        whole = EfficientNetModel(EfficientNetConfig(width_coefficient=config.multiplier, **values))
        if config.checkpoint is None:
            restart(whole)
        else:
            _load(whole, config.checkpoint)
        self.stem, self.blocks = whole.embeddings, whole.encoder.blocks[: sum(BLOCKS[: config.stages])]
        last: Any = self.blocks[-1]
        self.channels: int = last.projection.project_conv.out_channels
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM

    def forward(self, pictures: Tensor) -> Tensor:
        """Map float32 [N, 3, H, W] to float32 [N, channels, H / stride, W / stride]."""
        cells = self.stem(pictures)
        for block in self.blocks:
            if self.recompute and self.training:
                cells = checkpoint(block, cells, use_reentrant=False)
            else:
                cells = block(cells)
        return cells


def _load(model: EfficientNetModel, folder: str) -> None:
    """Fill a model with the weights of a local checkpoint."""
    found = EfficientNetModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    try:
        model.load_state_dict(found.state_dict())
    except RuntimeError as error:
        raise ValueError(f"{folder} does not fit an EfficientNet of this multiplier: {error}") from error

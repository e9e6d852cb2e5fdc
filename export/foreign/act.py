"""ACT, the Action Chunking Transformer, as LeRobot builds it, for inference.

After Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware". The names of the
parameters are LeRobot's. At inference the latent of its variational autoencoder is zero, so the encoder that
draws it in training is not here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.foreign.resnet import DEPTHS, WIDTHS, ResNet, map_size
from export.foreign.weights import Table

WEIGHTS = Table(
    taken=(
        ("model.backbone.", "backbone."),
        ("model.encoder.", "encoder."),
        ("model.decoder.", "decoder."),
        ("model.encoder_latent_input_proj.", "encoder_latent_input_proj."),
        ("model.encoder_robot_state_input_proj.", "encoder_robot_state_input_proj."),
        ("model.encoder_img_feat_input_proj.", "encoder_img_feat_input_proj."),
        ("model.encoder_1d_feature_pos_embed.", "encoder_1d_feature_pos_embed."),
        ("model.decoder_pos_embed.", "decoder_pos_embed."),
        ("model.action_head.", "action_head."),
    ),
    ignored=(("model.vae_encoder*", "the variational encoder, which only training uses"),),
)


@dataclass(frozen=True)
class Config:
    """The sizes that LeRobot's config.json gives, under its names."""

    state: int
    action: int
    # Height and width of each camera's picture [pixels].
    pictures: tuple[tuple[int, int], ...]
    vision_backbone: str
    chunk_size: int
    dim_model: int
    n_heads: int
    dim_feedforward: int
    feedforward_activation: str
    n_encoder_layers: int
    n_decoder_layers: int
    pre_norm: bool
    latent_dim: int


class Attention(nn.Module):
    """Multi-head attention with the parameters of `torch.nn.MultiheadAttention`, in one traceable path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return what the queries [N, Q, D] find among keys and values [N, P, D]: float32 [N, Q, D]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        projected = map(functional.linear, (query, key, value), weights, biases)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        attended = functional.scaled_dot_product_attention(q, k, v)  # [N, heads, Q, D / heads]
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """What an encoder's and a decoder's layer share: two linear layers, and where the norms go."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.activation = {"relu": functional.relu, "gelu": functional.gelu}[config.feedforward_activation]
        self.linear1 = nn.Linear(config.dim_model, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, config.dim_model)

    def before(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        """Normalise what goes into a branch, with `pre_norm`."""
        return norm(tokens) if self.pre_norm else tokens

    def after(self, tokens: Tensor, norm: nn.Module) -> Tensor:
        """Normalise the sum of a branch and its residual, without `pre_norm`."""
        return tokens if self.pre_norm else norm(tokens)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """Apply the two linear layers: float32 [N, L, D]."""
        return self.linear2(self.activation(self.linear1(tokens)))


class EncoderLayer(FeedForward):
    """Self-attention; positions are added to queries and keys alone, as in DETR (Carion et al. 2020)."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.self_attn = Attention(config.dim_model, config.n_heads)
        self.norm1 = nn.LayerNorm(config.dim_model)
        self.norm2 = nn.LayerNorm(config.dim_model)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return tokens float32 [N, L, D]; positions are [L, D]."""
        inside = self.before(tokens, self.norm1)
        placed = inside + positions
        tokens = self.after(tokens + self.self_attn(placed, placed, inside), self.norm1)
        return self.after(tokens + self.feed_forward(self.before(tokens, self.norm2)), self.norm2)


class DecoderLayer(FeedForward):
    """Self-attention among the actions of a chunk, then attention to what was observed."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.self_attn = Attention(config.dim_model, config.n_heads)
        self.multihead_attn = Attention(config.dim_model, config.n_heads)
        self.norm1 = nn.LayerNorm(config.dim_model)
        self.norm2 = nn.LayerNorm(config.dim_model)
        self.norm3 = nn.LayerNorm(config.dim_model)

    def forward(self, tokens: Tensor, positions: Tensor, memory: Tensor, memory_positions: Tensor) -> Tensor:
        """Return tokens float32 [N, T, D]; the memory is [N, L, D], positions are [T, D] and [L, D]."""
        inside = self.before(tokens, self.norm1)
        placed = inside + positions
        tokens = self.after(tokens + self.self_attn(placed, placed, inside), self.norm1)
        query = self.before(tokens, self.norm2) + positions
        found = self.multihead_attn(query, memory + memory_positions, memory)
        tokens = self.after(tokens + found, self.norm2)
        return self.after(tokens + self.feed_forward(self.before(tokens, self.norm3)), self.norm3)


class Stack(nn.Module):
    """Layers, and a norm behind them."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, tokens: Tensor, *more: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        for layer in self.layers:
            tokens = layer(tokens, *more)
        return self.norm(tokens)


class Act(nn.Module):
    """An `export.source.ExportableModel` without command and without noise."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.dim_model
        self.latent_dim, self.chunk_size = config.latent_dim, config.chunk_size
        self.backbone = ResNet(DEPTHS[config.vision_backbone])
        norm = nn.LayerNorm(width) if config.pre_norm else nn.Identity()
        self.encoder = Stack([EncoderLayer(config) for _ in range(config.n_encoder_layers)], norm)
        layers: list[nn.Module] = [DecoderLayer(config) for _ in range(config.n_decoder_layers)]
        self.decoder = Stack(layers, nn.LayerNorm(width))
        self.encoder_latent_input_proj = nn.Linear(config.latent_dim, width)
        self.encoder_robot_state_input_proj = nn.Linear(config.state, width)
        self.encoder_img_feat_input_proj = nn.Conv2d(WIDTHS[-1], width, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(2, width)
        self.decoder_pos_embed = nn.Embedding(config.chunk_size, width)
        self.action_head = nn.Linear(width, config.action)
        places = [positions_2d(*map_size(*size), width) for size in config.pictures]
        self.register_buffer("places", torch.cat(places), persistent=False)
        self.places: Tensor  # [L, D], of all cameras

    def act(
        self, images: dict[str, Tensor], command: dict[str, Tensor], state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Compute one chunk; see `export.source.ExportableModel`."""
        latent = state.new_zeros((1, self.latent_dim)).expand(state.shape[0], -1)
        tokens = [
            self.encoder_latent_input_proj(latent).unsqueeze(1),
            self.encoder_robot_state_input_proj(state).unsqueeze(1),
            *(self._seen(picture) for picture in images.values()),
        ]
        positions = torch.cat([self.encoder_1d_feature_pos_embed.weight, self.places])  # [L, D]
        memory = self.encoder(torch.cat(tokens, dim=1), positions)  # [B, L, D]
        queries = self.decoder_pos_embed.weight  # [T, D]
        start = torch.zeros_like(queries).expand(state.shape[0], -1, -1)
        return {"actions": self.action_head(self.decoder(start, queries, memory, positions))}

    def _seen(self, picture: Tensor) -> Tensor:
        features = self.encoder_img_feat_input_proj(self.backbone(picture))  # [B, D, h, w]
        return features.flatten(2).transpose(1, 2)  # [B, h w, D], row by row


def positions_2d(height: int, width: int, dim: int) -> Tensor:
    """Return sinusoidal positions of a feature map, row by row: float32 [height * width, dim].

    Half of the dimensions say the row, half the column, each from 1 to its number, scaled to 2 pi, as DETR
    (Carion et al. 2020) has them.
    """
    half = dim // 2
    frequencies = 10000 ** (2 * (torch.arange(half, dtype=torch.float32, device="cpu") // 2) / half)

    def encoded(count: int) -> Tensor:
        place = torch.arange(1, count + 1, dtype=torch.float32, device="cpu")
        angles = (place / (count + 1e-6) * 2 * math.pi).unsqueeze(-1) / frequencies  # [count, half]
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)

    rows, columns = encoded(height), encoded(width)
    grid = (height, width, half)
    return torch.cat([rows[:, None].expand(grid), columns[None].expand(grid)], dim=-1).flatten(0, 1)

"""SigLIP's picture tower, as PaliGemma uses it: a vision transformer without pooling.

After Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training". The names of the parameters are
transformers'.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6


@dataclass(frozen=True)
class Sizes:
    """The sizes of the tower."""

    width: int
    depth: int
    mlp: int
    heads: int
    # Edge of a patch, and of the square picture [pixels].
    patch: int
    picture: int

    @property
    def patches(self) -> int:
        """Tokens of a picture."""
        return (self.picture // self.patch) ** 2


class Embeddings(nn.Module):
    """Patches to tokens, with learnt positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch)
        self.position_embedding = nn.Embedding(sizes.patches, sizes.width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return tokens float32 [N, patches, width]."""
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight.float()


class Attention(nn.Module):
    """Multi-head attention among all patches."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj = nn.Linear(sizes.width, sizes.width)
        self.k_proj = nn.Linear(sizes.width, sizes.width)
        self.v_proj = nn.Linear(sizes.width, sizes.width)
        self.out_proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [N, patches, width]."""
        queries, keys, values = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = functional.scaled_dot_product_attention(queries, keys, values)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.mlp)
        self.fc2 = nn.Linear(sizes.mlp, sizes.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [N, patches, width]."""
        return self.fc2(functional.gelu(self.fc1(tokens), approximate="tanh"))


class Layer(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes.width, EPSILON)
        self.self_attn = Attention(sizes)
        self.layer_norm2 = nn.LayerNorm(sizes.width, EPSILON)
        self.mlp = MLP(sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [N, patches, width]."""
        tokens = tokens + self.self_attn(self.layer_norm1(tokens))
        return tokens + self.mlp(self.layer_norm2(tokens))


class Encoder(nn.Module):
    """All layers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [N, patches, width]."""
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


class SigLIP(nn.Module):
    """Pictures to tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.encoder = Encoder(sizes)
        self.post_layernorm = nn.LayerNorm(sizes.width, EPSILON)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return tokens float32 [N, patches, width] of square pictures float32 [N, 3, H, H] in [-1, 1]."""
        return self.post_layernorm(self.encoder(self.embeddings(pictures)))

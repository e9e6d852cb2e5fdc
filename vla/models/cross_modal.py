"""Cross-modal transformer: self-attention within text and image, then each attends to the other.

After Tan & Bansal 2019, "LXMERT: Learning Cross-Modality Encoder Representations from Transformers", with
sequences on both sides: words, and positions of the picture. The text's attention over the image is itself
the read-out: its mean, weighted by a learned score of each word, says where to look, by the spatial soft
arg-max of Levine et al. 2016, "End-to-End Training of Deep Visuomotor Policies", and what is seen there. Both
attentions are returned, over the picture and over the words; they mean something because neither side is
pooled to one token before them.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from torch import Tensor, nn

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.attention import Block
from vla.models.parts.mlp import ActionHead
from vla.models.parts.read_out import ImageTokens, soft_argmax
from vla.models.parts.text import AttentionPooling, TextTransformer
from vla_runtime.spec import Extra

STRIDE = 8
# Factor of the scores of text on image. From the flat start of the usual scale, grounding takes far longer.
SCORE_SCALE = 8.0


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Channels and depth of the convolutions.
    channels: int = 48
    depth: int = 1
    # Width of the tokens of both sides, and heads and perceptrons of their blocks.
    width: int = 32
    heads: int = 4
    inner: int = 64
    # Self-attention blocks over the words, and over the positions of the picture.
    text_layers: int = 1
    vision_layers: int = 1
    # Features that a head reports of what it sees.
    features: int = 16
    # Width and hidden layers of the action head.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(channels=8, depth=0, width=8, heads=2, inner=16, features=4, hidden=16, layers=1)

    @classmethod
    def base(cls) -> Self:
        """LXMERT's depths: nine blocks over the words, five over the picture, of width 768."""
        return cls(
            channels=128,
            depth=3,
            width=768,
            heads=12,
            inner=3072,
            text_layers=9,
            vision_layers=5,
            features=32,
            hidden=512,
        )


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is L: the text features.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    masked = True

    # Each token's share in what the positions that are attended to take from the text: float32 [B, L].
    extras = MappingProxyType({"word_attention": Extra()})

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width, heads, inner = config.width, config.heads, config.inner
        self.image_tokens = ImageTokens(sizes.image_size, config.channels, STRIDE, config.depth, width)
        self.image_blocks = nn.ModuleList([Block(width, heads, inner) for _ in range(config.vision_layers)])
        self.text_encoder = TextTransformer(
            sizes.vocabulary,
            sizes.context_length,
            width,
            layers=config.text_layers,
            heads=heads,
            mlp_width=inner,
        )
        self.text_to_image = Block(width, heads, inner, attends="context", score_scale=SCORE_SCALE)
        self.image_to_text = Block(width, heads, inner, attends="context")
        self.pooling = AttentionPooling(width)
        self.value_projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.features))
        inputs = sizes.cameras * heads * (2 + config.features) + width + sizes.state
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the text encoder: float32 [N, L, width], bool [N, L]."""
        return self.text_encoder(input_ids, attention_mask), attention_mask.bool()

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the normalised chunk, the text's attention over the image and the image's over the text."""
        actions, attention, words = self._decode(self._encode(images), command, command_mask, state)
        attention = self.image_tokens.as_map(attention.mean(2))
        return {"actions": actions, "attention": attention, "word_attention": words}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared distance of predicted from demonstrated chunks, both normalised."""
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        image = batch.per_command(self._encode(batch.images))
        actions, _, _ = self._decode(image, command, mask, batch.per_command(batch.state))
        return {"actions": batch.squared_error(actions)}

    def _encode(self, images: Tensor) -> Tensor:
        """Return what is common to all commands: float32 [B, C * P, width]."""
        tokens = self.image_tokens(images)
        for block in self.image_blocks:
            tokens = block(tokens)
        return tokens

    def _decode(
        self, image: Tensor, text: Tensor, mask: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Let both sides attend to each other and decide.

        Returns:
            the chunk, float32 [N, T, A], the heads' attention, [N, C, heads, P], the words' shares, [N, L]
        """
        new_text, text_weights = self.text_to_image.with_weights(text, image)  # [N, heads, L, C * P]
        new_image, image_weights = self.image_to_text.with_weights(image, text, mask[:, None, None])
        summary, importance = self.pooling(new_text, mask)
        mean = (importance[:, None, None] @ text_weights).squeeze(2)  # [N, heads, C * P], sums to 1
        attention = mean.unflatten(-1, (self.sizes.cameras, -1)).transpose(1, 2)  # [N, C, heads, P]
        attention = attention / attention.sum(-1, keepdim=True).clamp_min(1e-9)
        values = self.value_projection(new_image).unflatten(1, (self.sizes.cameras, -1))
        seen = soft_argmax(attention, values, self.image_tokens.positions).flatten(1)
        shares = (mean.mean(1, keepdim=True) @ image_weights.mean(1)).squeeze(1)
        return self.action_head(seen, summary, state), attention, shares

"""RT-2 in small: one causal transformer reads words and pictures and answers in action tokens.

After RT-2 (Brohan et al. 2023): every dimension of every action is one of 256 tokens, the bins of its range,
and a language head beside the action head keeps the words' meaning by guessing each command's next word.
After OpenVLA-OFT (Kim et al. 2025, github.com/moojink/openvla-oft): all tokens of the chunk are decoded at
once, so that decoding has a fixed length and one pass; a token is read off as the centre of the most probable
bin. The pictures reach the transformer as a few tokens, made by queries as in Q-Former (Li et al. 2023), each
with the place it looked at.

The sequence is command, pictures, state, actions. As the mask is causal, nothing that the layers make of the
command depends on the pictures: it is computed once and cached, and a frame costs its own tokens only. The
usual sketch passes a decoder layer its memory under a name that it does not have, and decodes in a Python
loop until an end token appears, which a trace freezes; its language head shares no weights with the words
that it guesses.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, Sizes
from vla.models.perception import Perception
from vla.models.spatial import multilayer
from vla_runtime.actions import decode_bins, encode_bins

# Weight of the language head's loss.
LANGUAGE = 0.02


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Tokens of an action's dimension.
    bins: int = 256
    # Width of words, queries and all tokens.
    width: int = 64
    heads: int = 4
    inner: int = 256
    layers: int = 2
    # Eyes; see `Perception`.
    channels: int = 32
    depth: int = 3
    queries: int = 4
    keypoints: int = 8

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(bins=16, width=8, heads=2, inner=16, layers=2, channels=8, depth=1, queries=2, keypoints=2)

    @classmethod
    def base(cls) -> Self:
        """A decoder of a small language model's depth and width; RT-2's has billions of parameters."""
        return cls(width=768, heads=12, inner=3072, layers=12, channels=64, depth=4, queries=16, keypoints=32)


class Model(nn.Module):
    """See `vla.models` for the signature.

    Lc is Q + 1 + L: the queries, the summary, then the words; Dc is `layers` * `width`: what each layer reads
    of the words, side by side (the queries and the summary fill the first `width`).

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the width none of the heads.
    """

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width = config.width
        self.perception = Perception(
            sizes,
            width=width,
            channels=config.channels,
            depth=config.depth,
            queries=config.queries,
            keypoints=config.keypoints,
        )
        self.places = nn.Parameter(0.02 * torch.randn(sizes.context_length, width))
        self.layers = nn.ModuleList([_Layer(width, config.heads, config.inner) for _ in range(config.layers)])
        self.see = nn.Linear(self.perception.seen, width)
        self.marks = nn.Parameter(0.02 * torch.randn(sizes.cameras * config.queries, width))
        self.feel = multilayer(self.perception.flat + sizes.state + width, 2 * width, 1, width)
        self.slots = nn.Parameter(0.5 * torch.randn(sizes.horizon * sizes.action, width))
        self.normalise = nn.LayerNorm(width)
        self.action_head = nn.Linear(width, config.bins)
        self.language_head = nn.Linear(width, width)
        ones = torch.ones(sizes.context_length, sizes.context_length, dtype=torch.bool)
        self.causal: Tensor
        self.register_buffer("causal", ones.tril(), persistent=False)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run all layers over the words: float32 [N, Q + 1 + L, layers * width], bool [N, Q + 1 + L]."""
        queries, kept = self.perception.encode_command(input_ids, attention_mask)
        read, _ = self._words(input_ids)
        queries = functional.pad(queries, (0, read.shape[-1] - self.config.width))
        return torch.cat([queries, read], dim=1), torch.cat([kept, attention_mask.bool()], dim=1)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the chunk of the most probable tokens, their mean probability, and the attention."""
        logits, attention = self._decode(images, command, command_mask, state)
        probability, tokens = torch.softmax(logits, dim=-1).max(-1)
        return {
            "actions": decode_bins(tokens, self.config.bins),
            "attention": self.perception.as_map(attention),
            "confidence": probability.mean((1, 2)),
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the action tokens and, weighed, that of the commands' words [nats]."""
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        told = batch.commands_per_frame
        state = batch.state.repeat_interleave(told, 0)
        logits, _ = self._decode(batch.images, command, mask, state)
        tokens = encode_bins(batch.actions, self.config.bins)
        return {
            "tokens": functional.cross_entropy(logits.flatten(0, 2), tokens.flatten()),
            "language": LANGUAGE * self._language(batch.input_ids[::told], batch.attention_mask[::told]),
        }

    def _words(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each layer reads of the words, [N, L, layers * width], and the last one's answer."""
        count = input_ids.shape[1]
        tokens = self.perception.words.table(input_ids) + self.places[:count]
        read = []
        for layer in self.layers:
            read.append(tokens)
            tokens = layer(tokens, tokens, self.causal[:count, :count])
        return torch.cat(read, dim=-1), tokens

    def _decode(self, images: Tensor, command: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits float32 [B * K, T, A, bins] for commands float32 [B * K, ...], and attention."""
        width, heard = self.config.width, self.config.queries + 1
        queries, words = command[:, :heard, :width], command[:, heard:]
        view = self.perception(images, queries.unflatten(0, (images.shape[0], -1)))
        felt = self.feel(torch.cat([view.flat(), state, queries[:, -1]], dim=-1)).unsqueeze(1)
        slots = self.slots.unsqueeze(0) + felt  # every slot knows what is felt before it reads anything
        tokens = torch.cat([self.see(view.queries) + self.marks, felt, slots], dim=1)
        mask = torch.cat([mask[:, heard:], torch.ones_like(tokens[..., 0], dtype=torch.bool)], dim=1)
        for layer, cached in zip(self.layers, words.split(width, dim=-1), strict=True):
            tokens = layer(tokens, torch.cat([cached, tokens], dim=1), mask[:, None, None])
        logits = self.action_head(self.normalise(tokens[:, -len(self.slots) :]))
        return logits.unflatten(1, (self.sizes.horizon, self.sizes.action)), view.attention

    def _language(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean surprise of one word of each command, drawn at random, given those before it.

        The vectors of the words are those that the model reads with, but learn nothing here: else every word
        that the commands never use would be pushed away, and no longer be neutral when one does.
        """
        _, last = self._words(input_ids)
        room = attention_mask.sum(1) - 1
        place = (torch.rand_like(last[:, 0, 0]) * room).long().clamp_min(0)  # the word before the guessed one
        spoken = last.gather(1, place[:, None, None].expand(-1, 1, last.shape[-1])).squeeze(1)
        guess = self.language_head(self.normalise(spoken)) @ self.perception.words.table.weight.detach().T
        following = input_ids.gather(1, (place + 1).clamp_max(input_ids.shape[1] - 1)[:, None]).squeeze(1)
        return functional.cross_entropy(guess, following)


class _Layer(nn.Module):
    """Attention over a context, then a perceptron; norms before each, residuals around each."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of the heads, got {width} and {heads}")
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.ask = nn.Linear(width, width)
        self.answer = nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.think = multilayer(width, inner, 1, width)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Return float32 [N, Q, D] after reading float32 [N, P, D]; mask: bool, [..., P], True where read."""
        queries = self._split(self.ask(self.before(tokens)))
        keys, values = self.answer(self.before(context)).chunk(2, dim=-1)
        read = functional.scaled_dot_product_attention(
            queries, self._split(keys), self._split(values), attn_mask=mask
        )
        tokens = tokens + self.merge(read.transpose(1, 2).flatten(2))
        return tokens + self.think(self.between(tokens))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, Q, D / heads]

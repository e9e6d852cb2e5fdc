"""RT-2 in small: one causal transformer reads words and pictures and answers in action tokens.

After Brohan et al. 2023, "RT-2: Vision-Language-Action Models Transfer Web Knowledge to Robotic Control":
every dimension of every action is one of 256 tokens, the bins of its range, and a language head beside the
action head keeps the words' meaning by guessing each command's next word, with the embeddings that the words
are read with. After Kim et al. 2025, "Fine-Tuning Vision-Language-Action Models: Optimizing Speed and
Success" (github.com/moojink/openvla-oft): all tokens of the chunk are decoded at once, so that decoding is
one pass of fixed length, which a trace can keep; a token is decoded to the centre of the most probable bin.
The pictures reach the transformer as a few tokens, made by queries as in Li et al. 2023, "BLIP-2:
Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models", each with the
position it looked at.

The sequence is command, pictures, state, actions. As the mask is causal, nothing that the layers make of the
command depends on the pictures: it is computed once and cached, and a frame costs its own tokens only.

Where the configuration has pieces of text, the language head generates one after the actions, word by word:
what the pictures show and what the robot will do, or the answer to a question. The actions are the same with
and without it.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.attention import Block
from vla.models.parts.mlp import mlp
from vla.models.parts.read_out import Perception, View
from vla.models.parts.text_decoder import Before, SceneTokens, TextDecoder
from vla_runtime.actions import decode_bins, encode_bins
from vla_runtime.spec import Extra

# Weight of the language head's loss on commands, and on the text it generates.
LANGUAGE, TEXT = 0.02, 1.0


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
    # Vision; see `Perception`.
    channels: int = 32
    depth: int = 3
    queries: int = 4
    keypoints: int = 8
    # What a text is made of: see `vla_runtime.spec.Extra`. Empty: the model has no text to say.
    pieces: tuple[str, ...] = ()
    # Pieces that `act` says; 0: none, which costs nothing.
    text_tokens: int = 0
    # Where a text looks in each picture, whatever the command.
    looks: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "pieces", tuple(self.pieces))  # JSON gives a list back
        if self.pieces and "" not in self.pieces:
            raise ValueError("pieces need an empty one, which ends a text")
        if self.text_tokens and not self.pieces:
            raise ValueError(f"text_tokens is {self.text_tokens}, and there are no pieces to say")

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(bins=16, width=8, heads=2, inner=16, layers=2, channels=8, depth=1, queries=2, keypoints=2)

    @classmethod
    def base(cls) -> Self:
        """A decoder of a small language model's depth and width; RT-2's has billions of parameters."""
        return cls(width=768, heads=12, inner=3072, layers=12, channels=64, depth=4, queries=16, keypoints=32)


class Decoded(NamedTuple):
    """What N commands call for, N being B frames times K commands."""

    logits: Tensor  # float32 [N, T, A, bins]
    inputs: list[Tensor]  # each layer's input: command, pictures, state, actions; float32 [N, P, width]
    mask: Tensor  # bool [N, P], which of them are attended to
    view: View


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature.

    With `text_tokens`, `act` also returns `text` int64 [B, text_tokens], indices of pieces. A model that has
    pieces learns from the labels `text` and `boxes`: its first looks are drawn to the boxes.

    Lc is Q + 1 + L: the queries, the summary, then the words; Dc is `layers` * `width`: the input of each
    layer for the words, side by side (the queries and the summary fill the first `width`).

    Raises:
        ValueError: the pictures' size is no multiple of the tower's stride, or the width none of the heads,
            or a text may be longer than a command.
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
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(sizes.context_length, width))
        self.blocks = nn.ModuleList([Block(width, config.heads, config.inner) for _ in range(config.layers)])
        self.visual_projection = nn.Linear(self.perception.query_size, width)
        self.visual_embedding = nn.Parameter(0.02 * torch.randn(sizes.cameras * config.queries, width))
        inputs = self.perception.flat_size + sizes.state + width
        self.state_embedding = mlp(inputs, 2 * width, 1, width)
        self.action_embedding = nn.Parameter(0.5 * torch.randn(sizes.horizon * sizes.action, width))
        self.norm = nn.LayerNorm(width)
        self.action_head = nn.Linear(width, config.bins)
        self.language_head = nn.Linear(width, width)
        ones = torch.ones(sizes.context_length, sizes.context_length, dtype=torch.bool)
        self.causal: Tensor
        self.register_buffer("causal", ones.tril(), persistent=False)
        if config.pieces:
            self._prepare_text(config, sizes)

    def _prepare_text(self, config: Config, sizes: Sizes) -> None:
        if config.text_tokens > sizes.context_length:
            raise ValueError(f"text_tokens must be {sizes.context_length} at most, got {config.text_tokens}")
        self.privileged = ("text", "boxes")
        if config.text_tokens:
            self.extras = {"text": Extra(pieces=config.pieces)}
        self.text_decoder = TextDecoder(len(config.pieces), config.pieces.index(""), config.width)
        self.scene = SceneTokens(
            sizes.cameras,
            self.perception.edge,
            config.channels,
            sizes.state,
            looks=config.looks,
            width=config.width,
        )

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run all layers over the words: float32 [N, Q + 1 + L, layers * width], bool [N, Q + 1 + L]."""
        queries, kept = self.perception.encode_command(input_ids, attention_mask)
        cache, _ = self._encode_words(input_ids)
        queries = functional.pad(queries, (0, cache.shape[-1] - self.config.width))
        return torch.cat([queries, cache], dim=1), torch.cat([kept, attention_mask.bool()], dim=1)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the chunk of the most probable tokens, their mean probability, attention and text."""
        decoded = self._decode(images, command, command_mask, state)
        probability, tokens = torch.softmax(decoded.logits, dim=-1).max(-1)
        answer = {
            "actions": decode_bins(tokens, self.config.bins),
            "attention": self.perception.attention_map(decoded.view.attention),
            "confidence": probability.mean((1, 2)),
        }
        if self.config.text_tokens:
            scene, _ = self.scene(decoded.view.features, state)
            before = Before(decoded.inputs, decoded.mask, scene)
            parts = cast("list[Block]", self.blocks), self._language, before, self.positional_embedding
            answer["text"] = self.text_decoder.decode(*parts, self.config.text_tokens)
        return answer

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the action tokens and, weighted, that of the commands' words [nats].

        With pieces, also the text's, and the squared distance of the looks from the objects.
        """
        command, mask = self.encode_command(batch.input_ids, batch.attention_mask)
        decoded = self._decode(batch.images, command, mask, batch.per_command(batch.state))
        tokens = encode_bins(batch.actions, self.config.bins)
        one = slice(None, None, batch.commands_per_frame)
        terms = {
            "tokens": functional.cross_entropy(decoded.logits.flatten(0, 2), tokens.flatten()),
            "language": LANGUAGE * self._language_loss(batch.input_ids[one], batch.attention_mask[one]),
        }
        return terms if batch.text is None else terms | self._text_loss(batch, batch.text, decoded)

    def _text_loss(self, batch: Batch, text: Tensor, decoded: Decoded) -> dict[str, Tensor]:
        scene, where = self.scene(decoded.view.features, batch.state)
        before = Before(decoded.inputs, decoded.mask, batch.per_command(scene))
        parts = cast("list[Block]", self.blocks), self._language, before
        objects = batch.boxes[:, :, : self.config.looks]
        centres = objects[..., :2] + objects[..., 2:] - 1  # from [0, 1] to [-1, 1]
        return {
            "text": TEXT * self.text_decoder.loss(*parts, text, self.positional_embedding),
            "looks": functional.mse_loss(where[:, :, : centres.shape[2]], centres),
        }

    def _language(self, output: Tensor) -> Tensor:
        """Turn the last layer's output into what is compared with the words' embeddings."""
        return self.language_head(self.norm(output))

    def _encode_words(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return each layer's input, [N, L, layers * width], and the last layer's output, [N, L, width]."""
        count = input_ids.shape[1]
        tokens = self.perception.text_encoder.embedding(input_ids) + self.positional_embedding[:count]
        cache = []
        for block in self.blocks:
            cache.append(tokens)
            tokens = block(tokens, mask=self.causal[:count, :count])
        return torch.cat(cache, dim=-1), tokens

    def _decode(self, images: Tensor, command: Tensor, mask: Tensor, state: Tensor) -> Decoded:
        """Decode all action tokens, for commands float32 [B * K, ...]."""
        width, text_begin = self.config.width, self.config.queries + 1
        queries, cache = command[:, :text_begin, :width], command[:, text_begin:]
        view = self.perception(images, queries)
        visual = self.visual_projection(view.queries) + self.visual_embedding
        features = torch.cat([view.flat(), state, queries[:, -1]], dim=-1)
        situation = self.state_embedding(features).unsqueeze(1)
        # Action tokens contain picture and state before they attend to anything.
        tokens = torch.cat([visual, situation, self.action_embedding + situation], dim=1)
        mask = torch.cat([mask[:, text_begin:], torch.ones_like(tokens[..., 0], dtype=torch.bool)], dim=1)
        inputs = []
        for block, cached in zip(self.blocks, cache.split(width, dim=-1), strict=True):
            if self.config.pieces:
                inputs.append(torch.cat([cached, tokens], dim=1))
            tokens = block(tokens, cached, mask[:, None, None])
        logits = self.action_head(self.norm(tokens[:, -len(self.action_embedding) :]))
        return Decoded(logits.unflatten(1, (self.sizes.horizon, self.sizes.action)), inputs, mask, view)

    def _language_loss(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean surprise of one word of each command, drawn at random, given those before it.

        The embeddings of the words are those that the model reads with, but learn nothing here: else every
        word that the commands never use would be pushed away, and no longer be neutral when one does.
        """
        _, last = self._encode_words(input_ids)
        room = attention_mask.sum(1) - 1
        place = (torch.rand_like(last[:, 0, 0]) * room).long().clamp_min(0)  # the word before the guessed one
        before = last.gather(1, place[:, None, None].expand(-1, 1, last.shape[-1])).squeeze(1)
        embeddings = self.perception.text_encoder.embedding.weight.detach()
        guess = self._language(before) @ embeddings.T
        following = input_ids.gather(1, (place + 1).clamp_max(input_ids.shape[1] - 1)[:, None]).squeeze(1)
        return functional.cross_entropy(guess, following)

"""Find the object first, then act on it: proposals, matching, and an action head that sees the match alone.

Every position of a feature map proposes an object, as in the one-stage detectors of Tian et al. 2019, "FCOS:
Fully Convolutional One-Stage Object Detection", and Zhou et al. 2019, "Objects as Points": how much it is
one, its box, and a vector to match with. The command makes a vector of what it names; their likeness, with
the score, says which proposal is meant, as in Minderer et al. 2022, "Simple Open-Vocabulary Object Detection
with Vision Transformers". The action head gets the position of the match, its box and its features, not the
picture: what it does can be explained by the box that it shows. In training labels give the boxes of all
objects and which of them is meant.

There are as many proposals as positions, and the match is a distribution over them. No number of crops
depends on the picture, which a trace would freeze.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, Sizes
from vla.models.parts.mlp import ActionHead, mlp
from vla.models.parts.read_out import position_grid
from vla.models.parts.text import BagOfWords
from vla.models.parts.towers import Convolutions, edge_of, encode_images
from vla_runtime.spec import Extra

# Edge of a position of the map [pixels].
STRIDE = 4
# An object counts as seen from positions about this far from its centre [positions].
SPREAD = 1.0
# The match's score counts proposals this near to the best as the same object [positions].
SAME = 2.5


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Width of a word's vector and of what is matched.
    word_width: int = 64
    # Channels and 3 x 3 convolutions of the detector's map.
    channels: int = 32
    depth: int = 3
    # Width and hidden layers of the action decoder.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(word_width=8, channels=8, depth=1, hidden=16, layers=1)

    @classmethod
    def base(cls) -> Self:
        """For pictures and tasks richer than the tabletop; about four times the default's computation."""
        return cls(word_width=128, channels=64, depth=5, hidden=512)


class Model(nn.Module):
    """See `vla.models` for the signature; Lc is 2: what to look for, then the summary.

    `act` also returns the match: `box` float32 [B, 4], left, top, right and bottom as shares of the picture's
    edge, `box_score` float32 [B] in [0, 1], and `box_camera` int64 [B], the camera that shows it best.

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    privileged: ClassVar[tuple[str, ...]] = ("target", "boxes")

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.extras = {"box": Extra(), "box_score": Extra(), "box_camera": Extra()}
        width, channels = config.word_width, config.channels
        self.edge = edge_of(sizes.image_size, STRIDE)
        self.text_encoder = BagOfWords(sizes.vocabulary, width)
        self.command_head = mlp(width, 2 * width, 1, 2 * width)
        self.tower = Convolutions(channels, STRIDE, config.depth)
        self.detection_head = nn.Linear(channels, 5)
        self.match_projection = nn.Linear(channels, width)
        inputs = sizes.cameras * (2 + 4 + channels) + sizes.state + width
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)
        self.positions: Tensor
        self.register_buffer("positions", position_grid(self.edge, self.edge), persistent=False)  # [P, 2]
        self.same: Tensor
        near = torch.cdist(self.positions, self.positions) * self.edge / 2 <= SAME
        self.register_buffer("same", near.float(), persistent=False)  # [P, P]

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into what to look for and a summary: float32 [N, 2, word_width], bool [N, 2]."""
        command = self.command_head(self.text_encoder(input_ids, attention_mask)).unflatten(-1, (2, -1))
        return command, torch.ones_like(command[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the chunk, the matched box and its score, and the distribution over the proposals."""
        features, objects, boxes = self._propose(images)
        match = self._match(features, objects, command[:, :1]).exp()  # [B, C, 1, P]
        box, score, camera = self._best(match.squeeze(2), objects, boxes)
        return {
            "actions": self._decode(match, features, boxes, command, state),
            "attention": match.squeeze(2).unflatten(-1, (self.edge, self.edge)),
            "confidence": score,
            "box": box,
            "box_score": score,
            "box_camera": camera,
        }

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the chunk's squared error, normalised, and what detector and matching have to learn."""
        command, _ = self.encode_command(batch.input_ids, batch.attention_mask)
        commands_per_frame = batch.commands_per_frame
        features, objects, boxes = self._propose(batch.images)
        wanted = command[:, 0].unflatten(0, (-1, commands_per_frame))
        log_match = self._match(features, objects, wanted)  # [B, C, K, P]
        state = batch.per_command(batch.state)
        actions = self._decode(log_match.exp(), features, boxes, command, state)
        heat = self._heat(batch.boxes)  # [B, C, N, P]
        wanted_object = batch.target.unflatten(0, (-1, commands_per_frame))[:, None, :, None]
        target = heat.gather(2, wanted_object.expand(-1, heat.shape[1], -1, heat.shape[3]))
        target = target / target.sum(-1, keepdim=True).clamp_min(1e-9)
        nearest, nearest_object = heat.max(2)  # [B, C, P]
        true = batch.boxes.gather(2, nearest_object.unsqueeze(-1).expand(-1, -1, -1, 4))  # [B, C, P, 4]
        off = (boxes - true).abs().mean(-1)
        return {
            "actions": functional.mse_loss(actions, batch.actions),
            "match": -0.1 * (target * log_match).sum(-1).mean(),
            "objects": functional.binary_cross_entropy_with_logits(objects, nearest),
            "boxes": (off * nearest).sum() / nearest.sum().clamp_min(1e-9),
        }

    def _propose(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features [B, C, P, channels], scores as logits [B, C, P], boxes [B, C, P, 4] in [0, 1]."""
        features = encode_images(self.tower, images)
        found = self.detection_head(features)
        centres = (self.positions + 1) / 2
        # How far the box's edges are from the position, from a fraction of its cell to the whole picture.
        reach = functional.softplus(found[..., 1:]) / self.edge
        boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)
        return features, found[..., 0], boxes.clamp(0, 1)

    def _match(self, features: Tensor, objects: Tensor, wanted: Tensor) -> Tensor:
        """Return the log-probability that each proposal is what is wanted.

        Args:
            features: float32 [B, C, P, channels]
            objects: float32 [B, C, P], logits
            wanted: float32 [B, K, word_width]

        Returns:
            float32 [B, C, K, P]
        """
        likeness = wanted.unsqueeze(1) @ self.match_projection(features).transpose(-1, -2)
        return functional.log_softmax(likeness + functional.logsigmoid(objects).unsqueeze(2), dim=-1)

    def _best(self, match: Tensor, objects: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best proposal: its box float32 [B, 4], its score float32 [B], its camera int64 [B].

        Args:
            match: float32 [B, C, P], probabilities
            objects: float32 [B, C, P], logits
            boxes: float32 [B, C, P, 4]
        """
        probability = torch.sigmoid(objects)
        place = (match * probability).flatten(1).argmax(-1)
        camera, position = place // self.edge**2, place % self.edge**2
        shown = match.gather(1, camera[:, None, None].expand(-1, 1, match.shape[-1])).squeeze(1)
        box = boxes.flatten(1, 2).gather(1, place[:, None, None].expand(-1, 1, 4)).squeeze(1)
        score = probability.flatten(1).gather(1, place[:, None]).squeeze(1)
        return box, score * (shown * self.same[position]).sum(-1).clamp_max(1), camera

    def _decode(
        self, match: Tensor, features: Tensor, boxes: Tensor, command: Tensor, state: Tensor
    ) -> Tensor:
        """Return chunks float32 [B * K, T, A] from the mean proposal under the match [B, C, K, P]."""
        seen = torch.cat([match @ self.positions, match @ boxes, match @ features], dim=-1)  # [B, C, K, V]
        seen = seen.transpose(1, 2).flatten(2).flatten(0, 1)  # [B * K, C * V]
        return self.action_head(seen, state, command[:, 1])

    def _heat(self, boxes: Tensor) -> Tensor:
        """Return how near positions are to objects: [B, C, N, 4] to float32 [B, C, N, P] in [0, 1]."""
        middle = boxes[..., :2] + boxes[..., 2:] - 1  # as `positions`, in [-1, 1]
        away = (middle.unsqueeze(-2) - self.positions).square().sum(-1) * (self.edge / 2) ** 2
        return torch.exp(-away / (2 * SPREAD**2))

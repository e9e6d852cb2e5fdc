"""Find the object first, then act on it: proposals, matching, and an action head that acts on the match.

A command is read word by word, in order, and comes down to two choices: which skill, and which object. Labels
teach both, and what follows gets the chosen entries of two tables, not the words: a skill and an object that
were never commanded together are still two known choices. One more entry of the skills is none, for commands
that call for nothing that can be done.

What a word names is read from its letters alone. The sentence is then read with one and the same vector in
place of every word that names an object, and the object is copied from the words that the sentence points at,
as in See et al. 2017, "Get To The Point: Summarization with Pointer-Generator Networks". So whether something
can be done does not depend on which object is named, and what is learnt of one carries over to the others.

Every position of a feature map proposes an object, as in the one-stage detectors of Tian et al. 2019, "FCOS:
Fully Convolutional One-Stage Object Detection", and Zhou et al. 2019, "Objects as Points": how much it is
one, its box, and a vector to match with. Its likeness to the chosen object, with the score, says which
proposal is meant, as in Minderer et al. 2022, "Simple Open-Vocabulary Object Detection with Vision
Transformers". One more keypoint is the hand's: from where both appear, and where the hand is by its state,
follows how far the object is from the hand, which a camera that is moved changes little. The action head gets
this offset, at two scales, with the match, its box and features, and keypoints that no label names.

The policy abstains, as in El-Yaniv & Wiener 2010, "On the Foundations of Noise-free Selective
Classification": its confidence is the probability that the command is possible times the probability that
the pictures show the scene. It says as well whether the task is done: the termination condition of an option,
Sutton, Precup & Singh 1999, "Between MDPs and semi-MDPs".

There are as many proposals as positions, and the match is a distribution over them. No number of crops
depends on the picture, which a trace would freeze.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import Batch, PolicyModel, Sizes
from vla.models.parts.finding import (
    Command,
    Decision,
    Scene,
    abstaining_loss,
    acting_loss,
    finding_loss,
    reading_loss,
)
from vla.models.parts.mlp import ActionHead, mlp
from vla.models.parts.offsets import REACH, scales
from vla.models.parts.read_out import position_grid
from vla.models.parts.text import AttentionPooling, SpelledWords
from vla.models.parts.towers import Convolutions, edge_of, encode_images
from vla_runtime.spec import Extra

# Edge of a position of the map [pixels].
STRIDE = 4
# The match's score counts proposals this near to the best as the same object [positions].
SAME = 2.5
# Offsets below this are told apart finely in the picture, as a share of its edge.
NEAR_IN_PICTURE = 0.1
# Added to the spread of a picture's values before it divides them: a blank picture stays blank.
FAINT = 0.05
# The least probability of a name that is told from 0.
FAINTEST = 1e-9
# Reading costs as much as looking and acting: one command in so many is read in training.
COMMANDS_PER_READ = 4
# What an answer shows besides, see `Model`.
EXTRAS = {
    "box": Extra(),
    "box_score": Extra(),
    "box_camera": Extra(),
    "target": Extra(unit="m"),
    "done": Extra(),
    "command_confidence": Extra(),
    "picture_confidence": Extra(),
}


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    # Width of a word's vector and of what is matched.
    word_width: int = 64
    # Words that are told apart, width of the convolutions over letters, layers of the transformer.
    words: int = 32
    letters: int = 48
    text_layers: int = 2
    # The letter that begins a word.
    separator: int = 32
    # Entries for skills and objects; those that no label names stay unused.
    skill_codes: int = 8
    object_codes: int = 8
    # Channels and 3 x 3 convolutions of the detector's map.
    channels: int = 32
    depth: int = 3
    # Keypoints that do not depend on the command.
    keypoints: int = 8
    # Width and hidden layers of the action decoder.
    hidden: int = 256
    layers: int = 2

    @classmethod
    def tiny(cls) -> Self:
        """For tests: seconds to train, too small to be good."""
        return cls(
            word_width=8, letters=8, text_layers=1, channels=8, depth=1, keypoints=2, hidden=16, layers=1
        )

    @classmethod
    def base(cls) -> Self:
        """For pictures and tasks richer than the tabletop; about four times the default's computation."""
        return cls(word_width=128, letters=128, text_layers=3, channels=64, depth=5, keypoints=16, hidden=512)


class Model(PolicyModel[Config]):
    """See `vla.models` for the signature; Lc is 3, see `Command`.

    `act` also returns the match: `box` float32 [B, 4], left, top, right and bottom as shares of the picture's
    edge, `box_score` float32 [B] in [0, 1], `box_camera` int64 [B], the camera that shows it best, `target`
    float32 [B, 3], its place in the robot's frame [m]; `done` float32 [B] in [0, 1], how sure it is that the
    task is done; and what its confidence is the product of, `command_confidence` and `picture_confidence`,
    float32 [B].

    Raises:
        ValueError: the pictures' size is no multiple of `STRIDE`.
    """

    privileged = ("skill", "target", "objects", "boxes", "hand", "hand_points", "done")
    selective = True
    tokenizer = "bytes.json"

    def __init__(self, config: Config, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.extras = dict(EXTRAS)
        self.edge = edge_of(sizes.image_size, STRIDE)
        self._make_reading()
        self._make_looking()
        self._make_acting()
        self.positions: Tensor
        self.register_buffer("positions", position_grid(self.edge, self.edge), persistent=False)  # [P, 2]
        self.same: Tensor
        near = torch.cdist(self.positions, self.positions) * self.edge / 2 <= SAME
        self.register_buffer("same", near.float(), persistent=False)  # [P, P]

    def _make_reading(self) -> None:
        config, width = self.config, self.config.word_width
        self.text_encoder = SpelledWords(
            self.sizes.vocabulary,
            width,
            separator=config.separator,
            words=config.words,
            letters=config.letters,
            layers=config.text_layers,
            heads=max(1, width // 16),
            mlp_width=2 * width,
        )
        self.skill_pooling, self.object_pooling = AttentionPooling(width), AttentionPooling(width)
        self.skill_head = mlp(width, 2 * width, 1, config.skill_codes + 1)
        self.name_head = mlp(width, 2 * width, 1, config.object_codes + 1)
        # Stands in the sentence for every word that names an object.
        self.named_word = nn.Parameter(torch.randn(width))
        self.skill_table = nn.Parameter(torch.randn(config.skill_codes + 1, width))
        self.object_table = nn.Parameter(torch.randn(config.object_codes, width))

    def _make_looking(self) -> None:
        config, channels = self.config, self.config.channels
        self.tower = Convolutions(channels, STRIDE, config.depth)
        self.local_projection = nn.Linear(channels, channels)
        self.context_projection = nn.Linear(2 * channels, channels)
        self.detection_head = nn.Linear(channels, 5)
        self.match_projection = nn.Linear(channels, config.word_width)
        self.keypoint_head = nn.Linear(channels, config.keypoints)
        self.hand_head = nn.Linear(channels, 1)

    def _make_acting(self) -> None:
        config, sizes = self.config, self.sizes
        # The hand's place by the state, in units of `REACH`.
        self.hand_projection = nn.Linear(sizes.state, 3)
        matched = sizes.cameras * (2 + 2 + 4 + config.channels)
        summary = sizes.cameras * (3 + config.keypoints * 2 + 2 * config.channels)
        self.offset_head = mlp(matched + summary + sizes.state, config.hidden, 2, 3)
        self.sight_head = mlp(matched + summary, config.hidden // 4, 1, 1)
        inputs = matched + summary + 6 + sizes.state + config.word_width
        self.action_head = ActionHead(inputs, config.hidden, config.layers, sizes)
        self.done_head = mlp(inputs, config.hidden // 4, 1, 1)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn words into the choices made of them: float32 [N, 3, word_width], bool [N, 3]."""
        rows = self.read(input_ids, attention_mask).rows
        return rows, torch.ones_like(rows[..., 0], dtype=torch.bool)

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the chunk, the matched box and its score, and the distribution over the proposals."""
        scene = self._look(images)
        match = self._match(scene, command[:, :1]).exp()  # [B, C, 1, P]
        box, score, camera = self._best(match.squeeze(2), scene.objects, scene.boxes)
        decision = self.decide(self._view(match, scene).flatten(0, 1), state, command[:, 1])
        possible, seen = command[:, 2, 0], torch.sigmoid(decision.sight)
        return {
            "actions": decision.actions,
            "attention": match.squeeze(2).unflatten(-1, (self.edge, self.edge)),
            "confidence": possible * seen,
            "box": box,
            "box_score": score,
            "box_camera": camera,
            "target": decision.place * REACH,
            "done": possible * seen * torch.sigmoid(decision.done),
            "command_confidence": possible,
            "picture_confidence": seen,
        }

    def see(self, images: Tensor, objects: int) -> Tensor:
        """Return what frames show of each of the first objects, as `decide` takes it: float32 [B, N, V]."""
        scene = self._look(images)
        wanted = self.object_table[:objects].expand(len(images), -1, -1)
        return self._view(self._match(scene, wanted).exp(), scene)

    def decide(self, view: Tensor, state: Tensor, to_do: Tensor) -> Decision:
        """Return what to do.

        Args:
            view: float32 [N, V], what is seen of the object
            state: float32 [N, S]
            to_do: float32 [N, word_width], rows of `skill_table`, whose first one is none
        """
        offset = self.offset_head(torch.cat([view, state], dim=-1))
        known = torch.cat([view, scales(offset), state, to_do], dim=-1)
        return Decision(
            self.action_head(known),
            offset,
            self.hand_projection(state),
            self.sight_head(view).squeeze(-1),
            self.done_head(known).squeeze(-1),
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the chunk's squared error, normalised, and what reading, finding and abstaining learn.

        Commands that are not possible and pictures that do not show the scene teach to abstain, and the
        actions that the batch gives them. What acts learns from the choices that are meant, not from those
        that are read, and reading from one command in `COMMANDS_PER_READ`.
        """
        read = slice(math.ceil(len(batch.target) / COMMANDS_PER_READ))
        command = self.read(batch.input_ids[read], batch.attention_mask[read])
        scene = self._look(batch.images)
        skills = torch.where(batch.possible, batch.skill + 1, 0)
        wanted = self.object_table[batch.target].unflatten(0, (-1, batch.commands_per_frame))
        log_match = self._match(scene, wanted)
        view = self._view(log_match.exp(), scene).flatten(0, 1)
        decision = self.decide(view, batch.per_command(batch.state), self.skill_table[skills])
        return {
            **acting_loss(decision, batch),
            **reading_loss(command, batch, read),
            **abstaining_loss(decision, batch),
            **finding_loss(log_match, scene, batch, self.positions),
        }

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Command:
        """Read commands: int64 [N, L] twice, letters and mask; see `Command`."""
        words, mask = self.text_encoder.spell(input_ids, attention_mask)
        names = self.name(words)  # [N, W, object_codes + 1]
        tokens = self.text_encoder.mix(self._unnamed(words, names), mask)
        skills = self.skill_head(self.skill_pooling(tokens, mask)[0])
        _, weights = self.object_pooling(tokens, mask)
        objects = (weights.unsqueeze(1) @ names).squeeze(1)
        chances, named = torch.softmax(skills, dim=-1), objects[:, 1:]
        look_for = named / named.sum(1, keepdim=True).clamp_min(FAINTEST) @ self.object_table
        # What names no object calls for nothing, whatever it sounds like: "hold it".
        possible = ((1 - chances[:, :1]) * (1 - objects[:, :1])).expand_as(look_for)
        rows = torch.stack([look_for, chances @ self.skill_table, possible], dim=1)
        naming = -(names[..., 0].clamp_min(FAINTEST).log() * mask).sum(1) / mask.sum(1).clamp_min(1)
        return Command(rows, skills, objects.clamp_min(FAINTEST).log(), naming)

    def name(self, words: Tensor) -> Tensor:
        """Return which object each word names, none first: [..., D] to float32 [..., object_codes + 1]."""
        return torch.softmax(self.name_head(words), dim=-1)

    def _unnamed(self, words: Tensor, names: Tensor) -> Tensor:
        """Return the words with one vector in place of all that name an object, whichever it is."""
        named = 1 - names[..., :1]
        # A word names an object or does not; the gradient is that of the probability.
        share = (named > 0.5).to(named.dtype) + (named - named.detach())
        return share * self.named_word + (1 - share) * words

    def _look(self, images: Tensor) -> Scene:
        """Look at frames, float32 [B, C, 3, H, W], whatever their light."""
        mean = images.mean((2, 3, 4), keepdim=True)
        spread = (images - mean).square().mean((2, 3, 4), keepdim=True).sqrt()
        features = encode_images(self.tower, (images - mean) / (spread + FAINT))
        pooled = torch.cat([features.mean(2), features.amax(2)], dim=-1)  # [B, C, 2 * channels]
        around = self.context_projection(pooled).unsqueeze(2)
        features = functional.relu(self.local_projection(features) + around)
        found = self.detection_head(features)
        centres = (self.positions + 1) / 2
        # How far the box's edges are from the position, from a fraction of its cell to the whole picture.
        reach = functional.softplus(found[..., 1:]) / self.edge
        boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)
        keypoints = torch.softmax(self.keypoint_head(features), dim=2).transpose(-1, -2) @ self.positions
        hand = functional.log_softmax(self.hand_head(features).squeeze(-1), dim=-1)
        hand_point = (hand.exp().unsqueeze(2) @ centres).squeeze(2)
        sure = hand.amax(-1).exp()
        summary = torch.cat([hand_point.flatten(1), sure, keypoints.flatten(1), pooled.flatten(1)], dim=-1)
        return Scene(features, found[..., 0], boxes.clamp(0, 1), hand, hand_point, summary)

    def _match(self, scene: Scene, wanted: Tensor) -> Tensor:
        """Return the log-probability that each proposal is what is wanted.

        Args:
            scene: what is seen
            wanted: float32 [B, K, word_width]

        Returns:
            float32 [B, C, K, P]
        """
        likeness = wanted.unsqueeze(1) @ self.match_projection(scene.features).transpose(-1, -2)
        return functional.log_softmax(likeness + functional.logsigmoid(scene.objects).unsqueeze(2), dim=-1)

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

    def _view(self, match: Tensor, scene: Scene) -> Tensor:
        """Return what frames show of the matches [B, C, K, P]: float32 [B, K, V]."""
        boxes = match @ scene.boxes
        away = (boxes[..., :2] + boxes[..., 2:]) / 2 - scene.hand_point.unsqueeze(2)
        near = torch.tanh(away / NEAR_IN_PICTURE)
        seen = torch.cat(
            [match @ self.positions, near, boxes, match @ scene.features], dim=-1
        )  # [B, C, K, V]
        seen = seen.transpose(1, 2).flatten(2)  # [B, K, C * V]
        summary = scene.summary.unsqueeze(1).expand(-1, seen.shape[1], -1)
        return torch.cat([seen, summary], dim=-1)

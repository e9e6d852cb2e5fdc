"""What a `grounded` reads, sees and decides, and what it learns of each from labels.

An object counts as seen from the positions of the map around its centre, by a Gaussian, as in Zhou et al.
2019, "Objects as Points", arXiv 1904.07850.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vla.models import Batch
from vla.models.parts.offsets import REACH, missed_offset

# An object counts as seen from positions about this far from its centre [positions].
SPREAD = 1.0
# An object is in the picture when its box is at least this wide and high, as shares of the picture's edge.
SEEN = 0.03


class Command(NamedTuple):
    """What N commands come down to."""

    # float32 [N, 3, word_width]: what to look for, what to do, and how sure that is anything, in each entry.
    rows: Tensor
    # Logits: float32 [N, skill_codes + 1] and float32 [N, object_codes + 1], each the first one for none.
    skills: Tensor
    objects: Tensor
    # float32 [N], how unlikely it is of a command's words that they name nothing: mean of - log p.
    naming: Tensor


class Scene(NamedTuple):
    """What B frames show, whatever is commanded."""

    features: Tensor  # float32 [B, C, P, channels]
    objects: Tensor  # float32 [B, C, P], logits
    boxes: Tensor  # float32 [B, C, P, 4], in [0, 1]
    hand: Tensor  # float32 [B, C, P], log-probabilities
    hand_point: Tensor  # float32 [B, C, 2], in [0, 1]
    # float32 [B, C * (3 + keypoints * 2 + 2 * channels)], the hand, the keypoints and all features pooled.
    summary: Tensor


class Decision(NamedTuple):
    """What N commands call for in their frames."""

    actions: Tensor  # float32 [N, T, A], normalised
    # float32 [N, 3], in units of `REACH`: from the hand to the object, and where the hand is.
    offset: Tensor
    hand: Tensor
    sight: Tensor  # float32 [N], logits that the object is seen
    done: Tensor  # float32 [N], logits that there is nothing left to do

    @property
    def place(self) -> Tensor:
        """The object's place in the robot's frame, in units of `REACH`: float32 [N, 3]."""
        return self.hand + self.offset


def acting_loss(decision: Decision, batch: Batch) -> dict[str, Tensor]:
    """Return how far actions and places are off."""
    possible, shown = batch.possible, batch.per_command(batch.shown)
    hand = batch.per_command(batch.hand) / REACH
    offset = _of_target(batch.objects, batch) / REACH - hand
    missed = (decision.actions - batch.actions).square().mean((1, 2))
    return {
        "actions": missed.mean(),
        # Once more where there is something to do: standing still is most of what is easy.
        "acting": 2 * _mean(missed, possible & shown),
        "offset": _mean(missed_offset(decision.offset, offset), _named(batch)),
        "hand": functional.mse_loss(decision.hand, hand),
    }


def reading_loss(command: Command, batch: Batch, read: slice) -> dict[str, Tensor]:
    """Return how far the commands that were read, some of the batch's, are misunderstood."""
    skills = torch.where(batch.possible, batch.skill + 1, 0)
    chosen = functional.cross_entropy(command.objects, batch.target[read] + 1, reduction="none")
    return {
        "skill": 0.2 * functional.cross_entropy(command.skills, skills[read]),
        "object": 0.2 * _mean(chosen, batch.possible[read]),
        # Most words name nothing. Before letters are told apart, all would: no order were left to read.
        "naming": 0.4 * command.naming.mean(),
    }


def abstaining_loss(decision: Decision, batch: Batch) -> dict[str, Tensor]:
    """Return how wrong it is of what is seen and of what is done."""
    seen = (batch.per_command(batch.shown) & _inside(batch)).float()
    seeing = functional.binary_cross_entropy_with_logits(decision.sight, seen, reduction="none")
    done = functional.binary_cross_entropy_with_logits(decision.done, batch.done.float(), reduction="none")
    return {
        "sight": 0.1 * _mean(seeing, batch.possible),
        "done": 0.1 * _mean(done, _named(batch)),
    }


def finding_loss(log_match: Tensor, scene: Scene, batch: Batch, positions: Tensor) -> dict[str, Tensor]:
    """Return how far off are the match, the proposals and the hand.

    Args:
        log_match: float32 [B, C, K, P], log-probabilities that a proposal is what is wanted
        scene: the proposals
        batch: the labels
        positions: float32 [P, 2], of the map, in [-1, 1]
    """
    missed = _missed(log_match, batch, positions)
    return {
        "match": 0.1 * _mean(missed, _named(batch)),
        **_detection_loss(scene, batch, positions),
        **_hand_loss(scene, batch, positions),
    }


def _missed(log_match: Tensor, batch: Batch, positions: Tensor) -> Tensor:
    """Return the cross entropy of the match [B, C, K, P] with where its object is: float32 [B * K]."""
    wanted = batch.target.unflatten(0, (-1, batch.commands_per_frame))[:, None, :, None]
    heat = _heat(batch.boxes, positions)  # [B, C, N, P]
    target = heat.gather(2, wanted.expand(-1, heat.shape[1], -1, heat.shape[3]))
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-9)
    return -(target * log_match).sum(-1).mean(1).flatten()


def _detection_loss(scene: Scene, batch: Batch, positions: Tensor) -> dict[str, Tensor]:
    """Return how far scores and boxes of all proposals are off; without a scene there are no objects."""
    heat = _heat(batch.boxes, positions) * batch.shown[:, None, None, None]
    nearest, nearest_object = heat.max(2)  # [B, C, P]
    true = batch.boxes.gather(2, nearest_object.unsqueeze(-1).expand(-1, -1, -1, 4))  # [B, C, P, 4]
    off = (scene.boxes - true).abs().mean(-1)
    return {
        "objects": functional.binary_cross_entropy_with_logits(scene.objects, nearest),
        "boxes": (off * nearest).sum() / nearest.sum().clamp_min(1e-9),
    }


def _hand_loss(scene: Scene, batch: Batch, positions: Tensor) -> dict[str, Tensor]:
    """Return how far the hand is missed in the pictures that show it."""
    points = batch.hand_points  # [B, C, 2]
    shows = ((points > 0) & (points < 1)).all(-1) & batch.shown[:, None]
    heat = _heat(torch.cat([points, points], dim=-1).unsqueeze(2), positions).squeeze(2)
    heat = heat / heat.sum(-1, keepdim=True).clamp_min(1e-9)
    return {
        "hand_match": 0.1 * _mean(-(heat * scene.hand).sum(-1), shows),
        "hand_point": _mean((scene.hand_point - points).abs().mean(-1), shows),
    }


def _inside(batch: Batch) -> Tensor:
    """Return whether a picture would show each command's object: bool [B * K]."""
    boxes = _of_target(batch.boxes.transpose(1, 2), batch)  # [B * K, C, 4]
    return ((boxes[..., 2:] - boxes[..., :2]).amin(-1) > SEEN).any(-1)


def _named(batch: Batch) -> Tensor:
    """Return whether each command can be done with an object that is seen: bool [B * K]."""
    return batch.possible & batch.per_command(batch.shown) & _inside(batch)


def _heat(boxes: Tensor, positions: Tensor) -> Tensor:
    """Return how near positions are to objects: [B, C, N, 4] and [P, 2] to float32 [B, C, N, P] in [0, 1]."""
    middle = boxes[..., :2] + boxes[..., 2:] - 1  # as `positions`, in [-1, 1]
    # Distances in [-1, 1] to those in positions, of which a map has the square of its edge.
    away = (middle.unsqueeze(-2) - positions).square().sum(-1) * (len(positions) / 4)
    return torch.exp(-away / (2 * SPREAD**2))


def _of_target(values: Tensor, batch: Batch) -> Tensor:
    """Return what belongs to each command's object: [B, N, ...] -> [B * K, ...]."""
    return batch.per_command(values)[torch.arange(len(batch.target), device=values.device), batch.target]


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean of values [N] where a mask is True; 0 where it nowhere is."""
    weights = where.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp_min(1)

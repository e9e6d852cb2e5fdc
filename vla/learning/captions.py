"""What pictures teach by what is said of them: which description fits, and how it goes on, word by word."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vla.models import AnyModel, Batch, PolicyModel, clip, vl_transformer
from vla.models.parts.attention import Block
from vla.models.parts.text_decoder import Before, TextDecoder
from vla.tabletop.descriptions import LENGTH, WORDS, describe, spell
from vla.training.batches import TRAIN, VALIDATE, Batches
from vla.training.texts import scene_of
from vla.training.validation import moved
from vla_runtime.errors import SpecError

# To tell the description of a picture from those of others; to say it.
Objective: TypeAlias = Literal["contrast", "caption"]
# How each is judged, and the unit: the share of pictures that another description fits better than theirs,
# and how much a description's words surprise.
MISSED = {"contrast": ("mismatched", "1"), "caption": ("surprise", "nats")}

# The temperature of similarities begins at that of Radford et al. 2021, and never makes more of them.
TEMPERATURE, SHARPEST = 0.07, 100.0
# Layers and heads of what says descriptions.
LAYERS, HEADS = 2, 4


@dataclass(frozen=True)
class Described(Batches):
    """Draws pictures with their descriptions in place of commands."""

    def train(self, step: int, frames: int, commands: int) -> Batch:
        """Draw `frames` training frames; each has one description."""
        random = np.random.default_rng([self.seed, TRAIN, step])
        return self._described(random.choice(self.frames[0], frames))

    def held_out(self, frames: int) -> Batch:
        """Draw validation frames, the same ones every time."""
        random = np.random.default_rng([self.seed, VALIDATE])
        return self._described(random.choice(self.frames[1], frames, replace=len(self.frames[1]) < frames))

    def _described(self, rows: np.ndarray) -> Batch:
        said = [describe(scene_of(self.dataset, row)) for row in rows]
        ids, mask = (
            torch.from_numpy(np.stack(part)) for part in zip(*map(self._tokenizer, said), strict=True)
        )
        longest, goals = int(mask.sum(1).max()), np.zeros((len(rows), 1), np.int64)
        return self._batch(rows, goals, self._phrases[0], goals)._replace(
            input_ids=ids[:, :longest],
            attention_mask=mask[:, :longest],
            text=torch.tensor([spell(description) for description in said]),
        )


class Captioned(PolicyModel):
    """A policy's towers under the objectives; what is added for these is thrown away afterwards.

    *contrast*, after Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision": the class token's feature and the end token's, by the policy's own projections. Frames of
    one description, of which an episode has many, all fit it. *caption*, after Desai & Johnson 2021, "VirTex:
    Learning Visual Representations from Textual Annotations": a small transformer says the description, given
    the patches. Both together are the losses of Yu et al. 2022, "CoCa: Contrastive Captioners are Image-Text
    Foundation Models".

    Raises:
        SpecError: the policy has no towers of CLIP's.
    """

    def __init__(self, policy: AnyModel, objectives: tuple[Objective, ...]) -> None:
        super().__init__()
        if not isinstance(policy, clip.Model | vl_transformer.Model):
            raise SpecError("pre-training needs an architecture with CLIP's towers: clip or vl_transformer")
        self.policy, self.config, self.objectives = policy, policy.config, objectives
        width = policy.vision_projection.out_features
        self.log_scale = nn.Parameter(-torch.tensor(TEMPERATURE).log())
        self.blocks = nn.ModuleList([Block(width, HEADS, 4 * width) for _ in range(LAYERS)])
        self.decoder = TextDecoder(len(WORDS), WORDS.index(""), width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, width))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the objectives' losses on one camera's pictures [nats]."""
        vision = self.policy.vision(pixel_values=batch.images[:, 0])
        terms = {}
        if "contrast" in self.objectives:
            scores, fits = self._similarity(vision.pooler_output, batch), same(batch.input_ids)
            terms["contrast"] = (
                functional.cross_entropy(scores, fits) + functional.cross_entropy(scores.T, fits)
            ) / 2
        if "caption" in self.objectives and batch.text is not None:
            patches = self.policy.vision.post_layernorm(vision.last_hidden_state[:, 1:])
            terms["caption"] = self._surprise(self.policy.vision_projection(patches), batch.text)
        return terms

    @torch.inference_mode()
    def missed(self, batch: Batch, device: str) -> tuple[float, ...]:
        """Return for each objective what `MISSED` says, of a batch that training does not see."""
        self.eval()
        batch = moved(batch, device)
        pictures = self.policy.vision(pixel_values=batch.images[:, 0]).pooler_output
        best = self._similarity(pictures, batch).argmax(1)
        fits = same(batch.input_ids).gather(1, best[:, None]) > 0
        found = {"contrast": 1 - float(fits.float().mean()), "caption": self.loss(batch).get("caption", 0)}
        return tuple(float(found[objective]) for objective in self.objectives)

    def _similarity(self, pictures: Tensor, batch: Batch) -> Tensor:
        """Return the scaled cosines of pictures, float32 [B, D], and descriptions: float32 [B, B]."""
        ends = self.policy.text(input_ids=batch.input_ids).pooler_output
        seen = functional.normalize(self.policy.vision_projection(pictures), dim=-1)
        said = functional.normalize(self.policy.text_projection(ends), dim=-1)
        return self.log_scale.exp().clamp(max=SHARPEST) * seen @ said.T

    def _surprise(self, patches: Tensor, text: Tensor) -> Tensor:
        """Return how much descriptions int64 [B, N] surprise, given patches float32 [B, P, D]."""
        mask = torch.ones_like(patches[..., 0], dtype=torch.bool)
        before = Before([patches] * LAYERS, mask, patches[:, :0])
        return self.decoder.loss(cast("list[Block]", self.blocks), self.head, before, text, self.places)


def same(ids: Tensor) -> Tensor:
    """Return which rows of int64 [B, L] are alike, each row's share of those like it: float32 [B, B]."""
    alike = (ids[:, None] == ids[None]).all(-1).float()
    return alike / alike.sum(1, keepdim=True)

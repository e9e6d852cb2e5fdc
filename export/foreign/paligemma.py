"""What the weights file of a pi0 or pi0.5 holds: PaliGemma, the expert beside it, the layers around them.

LeRobot and openpi's PyTorch port have the same keys; LeRobot's begin with `model.`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from export.errors import ExportError
from export.foreign.pi0 import gemma, siglip
from export.foreign.weights import Shapes, Table, depth_of, shape_of

# The shape of a weight; an error calls it no pi0's.
_shape = partial(shape_of, policy="pi0")
# LeRobot's and openpi's names of the two Gemmas, and the picture tower of both.
VARIANTS = {
    "gemma_300m": gemma.Sizes(width=1024, depth=18, mlp=4096, heads=8, head_dim=256),
    "gemma_2b": gemma.Sizes(width=2048, depth=18, mlp=16384, heads=8, head_dim=256),
}
TOWER_WIDTH, TOWER_DEPTH, TOWER_HEADS = 1152, 27, 16

# What a pi0.5 reads of a command and of the normalised state, which is cut into 256 bins.
PROMPT = "Task: {command}, State: {state};\nAction: "

BOTH = "paligemma_with_expert."
PALIGEMMA, EXPERT = f"{BOTH}paligemma.", f"{BOTH}gemma_expert."
LANGUAGE = f"{PALIGEMMA}model.language_model."
TOWER = f"{PALIGEMMA}model.vision_tower."
EMBEDDING, HEAD = f"{LANGUAGE}embed_tokens.weight", f"{PALIGEMMA}lm_head.weight"
OUTER = ("action_in_proj", "action_out_proj")
OF_PI0 = ("state_proj", "action_time_mlp_in", "action_time_mlp_out")
OF_PI05 = ("time_mlp_in", "time_mlp_out")


def root(shapes: Shapes) -> str:
    """Return what all keys begin with: `model.` or nothing."""
    return "model." if any(key.startswith(f"model.{BOTH}") for key in shapes) else ""


def kind(shapes: Shapes) -> Literal["pi0", "pi05"]:
    """Return which of the two a file holds.

    Raises:
        ExportError: it is neither.
    """
    if f"{root(shapes)}{OF_PI0[-1]}.weight" in shapes:
        return "pi0"
    if f"{root(shapes)}{OF_PI05[-1]}.weight" in shapes:
        return "pi05"
    raise ExportError(f"the weights are no pi0's: neither {OF_PI0[-1]} nor {OF_PI05[-1]} is among them")


def edge(shapes: Shapes) -> int:
    """Return the edge of the square pictures that the tower has positions for [pixels].

    Raises:
        ExportError: there is no such model in the file.
    """
    start = _tower(shapes)
    *_, patch, _ = _shape(shapes, f"{start}embeddings.patch_embedding.weight", 4)
    patches, _ = _shape(shapes, f"{start}embeddings.position_embedding.weight", 2)
    return math.isqrt(patches) * patch


def table(shapes: Shapes, own: Sequence[str]) -> Table:
    """Return where each key goes; `own` are the outer layers of its kind, `OF_PI0` or `OF_PI05`."""
    start = root(shapes)
    # Some versions of transformers name the tower's inner module too.
    inner = "vision_model." if any(key.startswith(f"{start}{TOWER}vision_model.") for key in shapes) else ""
    # The word embedding is kept under the head's name alone where the two are tied.
    words = EMBEDDING if f"{start}{EMBEDDING}" in shapes else HEAD
    taken = {
        f"{TOWER}{inner}": "vision.",
        f"{PALIGEMMA}model.multi_modal_projector.linear.": "projector.",
        words: "embed_tokens.weight",
        f"{LANGUAGE}layers.": "language.layers.",
        f"{EXPERT}model.layers.": "expert.layers.",
        f"{EXPERT}model.norm.": "norm.",
    } | {f"{name}.": f"{name}." for name in (*OUTER, *own)}
    ignored = {
        f"{LANGUAGE}norm.weight": "what comes after PaliGemma's last layer is never used",
        f"{EXPERT}lm_head.weight": "the expert says no words",
        f"{EXPERT}model.embed_tokens.weight": "the expert reads no words",
    }
    if words == EMBEDDING:
        ignored[HEAD] = "PaliGemma says no words"
    return Table(
        tuple((start + old, new) for old, new in taken.items()),
        tuple((start + key, why) for key, why in ignored.items()),
    )


def language(shapes: Shapes, variant: str) -> gemma.Sizes:
    """Return the sizes of PaliGemma's language model.

    Raises:
        ExportError: there is no such model in the file.
    """
    return _gemma(shapes, f"{root(shapes)}{LANGUAGE}", variant)


def expert(shapes: Shapes, variant: str) -> gemma.Sizes:
    """Return the sizes of the expert.

    Raises:
        ExportError: there is no such model in the file.
    """
    return _gemma(shapes, f"{root(shapes)}{EXPERT}model.", variant)


def check_pair(language: gemma.Sizes, expert: gemma.Sizes) -> None:
    """Refuse an expert that can't attend to the language model's keys and values.

    Raises:
        ExportError: they differ in layers or heads.
    """
    pairs = [(sizes.depth, sizes.heads, sizes.head_dim) for sizes in (language, expert)]
    if pairs[0] != pairs[1]:
        raise ExportError(
            "the weights are no pi0's: layers, heads and their width are "
            f"{pairs[0]} in PaliGemma and {pairs[1]} in the expert"
        )


def tower(shapes: Shapes, picture: int) -> siglip.Sizes:
    """Return the sizes of the tower that sees pictures of this edge [pixels].

    Raises:
        ExportError: there is no such model in the file.
    """
    start = _tower(shapes)
    width, _, patch, _ = _shape(shapes, f"{start}embeddings.patch_embedding.weight", 4)
    mlp, _ = _shape(shapes, f"{start}encoder.layers.0.mlp.fc1.weight", 2)
    if width % TOWER_HEADS:
        raise ExportError(f"the picture tower is {width} wide, which {TOWER_HEADS} heads can't share")
    depth = TOWER_DEPTH if width == TOWER_WIDTH else depth_of(shapes, f"{start}encoder.layers.")
    return siglip.Sizes(width, depth, mlp, TOWER_HEADS, patch, picture)


def vocabulary(shapes: Shapes) -> int:
    """Return the number of tokens that PaliGemma knows.

    Raises:
        ExportError: the file has no embedding of them.
    """
    start = root(shapes)
    key = start + (EMBEDDING if f"{start}{EMBEDDING}" in shapes else HEAD)
    return _shape(shapes, key, 2)[0]


def smaller(language: gemma.Sizes, expert: gemma.Sizes, config: Mapping[str, Any]) -> list[str]:
    """Return what a user is to know of weights that are smaller than the variants of their config.json."""
    pairs = (("paligemma_variant", language), ("action_expert_variant", expert))
    return [
        f"{name} is {config[name]}, and the weights are smaller: {sizes.width} wide"
        for name, sizes in pairs
        if sizes != VARIANTS[config[name]]
    ]


def _tower(shapes: Shapes) -> str:
    start = f"{root(shapes)}{TOWER}"
    return start + ("vision_model." if f"{start}vision_model.post_layernorm.weight" in shapes else "")


def _gemma(shapes: Shapes, start: str, variant: str) -> gemma.Sizes:
    """Return a variant's sizes, or those of a model that is narrower, as one made for a test is."""
    mlp, width = _shape(shapes, f"{start}layers.0.mlp.up_proj.weight", 2)
    if width == VARIANTS[variant].width:
        return VARIANTS[variant]
    head_dim, _ = _shape(shapes, f"{start}layers.0.self_attn.k_proj.weight", 2)
    queries, _ = _shape(shapes, f"{start}layers.0.self_attn.q_proj.weight", 2)
    return gemma.Sizes(width, depth_of(shapes, f"{start}layers."), mlp, queries // head_dim, head_dim)

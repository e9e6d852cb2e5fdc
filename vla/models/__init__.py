"""Policy architectures, one file each, behind one signature.

Every file defines `Config`, a frozen dataclass with `tiny()` and `base()` presets, and `Model`, a
`PolicyModel` that is made as `Model(config, sizes)` and has the two methods that are exported:

    encode_command(input_ids int64 [N, L], attention_mask int64 [N, L])
        -> (command float32 [N, Lc, Dc], command_mask bool [N, Lc])

    act(images float32 [B, C, 3, H, W], command [B, Lc, Dc], command_mask [B, Lc],
        state float32 [B, S], noise float32 [B, T, A])
        -> {"actions": float32 [B, T, A] normalised,
            or "logits": float32 [B, T, V], for a policy whose actions are discrete,
            "attention": float32 [B, C, h, w], optional, non-negative, sums to 1 over h and w,
            "confidence": float32 [B], optional, in [0, 1],
            <name>: float32 or int64 [B, ...], any further output that `extras` declares}

Images and state come normalised. Without a state, `state` is [B, 0]; `noise` is [B, 0, 0] for a model that
does not read it. Both methods must be traceable by `torch.jit.trace` and `torch.export` with a dynamic batch
size: no Python branch or loop over the batch, no size of it read as an int. They make no random number, so
that a request's answer depends on nothing but the request. A binned head decodes inside `act`, by
`vla_runtime.actions.decode_bins`, the inverse of the `encode_bins` that made its labels.

`PolicyModel` says what the signature does not, by attributes that an architecture sets where it differs.

For training, `Model.loss(batch: Batch) -> dict[str, Tensor]` gives the terms to be summed. A model's `config`
holds what it was made with, and makes the same model again without any other file. What pictures show and
commands mean is in the training data alone: no model knows tasks or objects by name.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, cast

from torch import Tensor, nn
from torch.nn import functional

from vla_runtime.spec import Extra

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The end of text in CLIP's vocabulary: its feature stands for the whole command, and it pads commands.
END_ID = 49407

ARCHITECTURES = (
    "command_attention",
    "early_fusion",
    "late_fusion",
    "dense_fusion",
    "clip",
    "vl_transformer",
    "cross_modal",
    "unified",
    "rt2",
    "diffusion",
    "flow",
    "hierarchical",
    "grounded",
    "efficient",
    "memory_efficient",
    "realtime",
)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a policy's inputs and outputs; see `vla_runtime.spec` for the letters."""

    cameras: int
    # Edge of the square pictures [pixels].
    image_size: int
    # Tokens of a padded command.
    context_length: int
    # Entries of the tokenizer's vocabulary.
    vocabulary: int
    # Dimensions of the proprioceptive state; 0 for none.
    state: int
    # Actions in a chunk [steps].
    horizon: int
    # Dimensions of an action; names in the vocabulary of discrete actions.
    action: int


class Batch(NamedTuple):
    """Samples to learn from: B frames, and for each of them K commands and the actions these call for.

    Rows of a frame's commands are adjacent: row `b * K + k` is command k of frame b.
    """

    images: Tensor  # float32 [B, C, 3, H, W], normalised
    state: Tensor  # float32 [B, S], normalised
    input_ids: Tensor  # int64 [B * K, L]
    attention_mask: Tensor  # int64 [B * K, L]
    actions: Tensor  # float32 [B * K, T, A], normalised
    # Labels that a simulator or an annotator knows, but no robot; models that learn from them name them in
    # `privileged`.
    skill: Tensor  # int64 [B * K], the skill that each command calls for, index into the model's `skills`
    target: Tensor  # int64 [B * K], the object that each command means, index into the frame's N objects
    objects: Tensor  # float32 [B, N, 3], the objects' centres in the robot's frame [m]
    boxes: Tensor  # float32 [B, C, N, 4], the objects' left, top, right and bottom in the pictures, in [0, 1]
    hand: Tensor  # float32 [B, 3], the point between the fingertips in the robot's frame [m]
    # float32 [B, C, 2], where the pictures show it, x and y, in [0, 1] where they do
    hand_points: Tensor
    done: Tensor  # bool [B * K], whether the frame shows that the command's task is done
    # What there is to refuse; models that learn from them are `selective`. Others get no such samples.
    possible: Tensor  # bool [B * K], whether the command calls for a skill and an object at all
    shown: Tensor  # bool [B], whether the pictures show the scene
    # bool [B * K, T, A], which actions the data has; None: all of them. Others are not learned from.
    valid: Tensor | None = None
    # int64 [B * K, N], what is to be said to each command, indices of the model's pieces, filled up with the
    # one that ends a text; None: there is nothing to say.
    text: Tensor | None = None
    # int64 [B * K, k], the steps that each command still needs, indices into the model's `steps`, the last of
    # which fills what is left; None: the data says nothing of steps.
    plan: Tensor | None = None
    # int64 [B * K, T], which of the vocabulary's symbols to answer; None: actions are no symbols.
    symbols: Tensor | None = None

    @property
    def commands_per_frame(self) -> int:
        """K."""
        return len(self.actions) // len(self.images)

    def per_command(self, values: Tensor) -> Tensor:
        """Repeat what belongs to frames for each of their commands: [B, ...] -> [B * K, ...]."""
        return values.repeat_interleave(self.commands_per_frame, 0)

    def squared_error(self, predicted: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Return the mean squared distance over the actions that the data has.

        Args:
            predicted: float32 [B * K * D, T, A], D answers to each command, adjacent
            wanted: float32, of the same shape; None: `actions`
        """
        wanted = self.actions if wanted is None else wanted
        if self.valid is None:
            return functional.mse_loss(predicted, wanted)
        valid = self.valid.repeat_interleave(len(predicted) // len(self.valid), 0)
        return ((predicted - wanted).square() * valid).sum() / valid.sum().clamp_min(1)


C = TypeVar("C", bound="DataclassInstance")


class PolicyModel(nn.Module, Generic[C]):
    """What the model of every architecture is."""

    # What it was made with.
    config: C
    # Whether `act` reads `noise`: float32 [B, T, A], standard normal, drawn from the request's seed (A is V
    # for logits).
    stochastic: bool = False
    # How answers show the further outputs: an output of indices by its labels, others as plain numbers.
    extras: Mapping[str, Extra] = MappingProxyType({})
    # The labels of `Batch` that `loss` learns from besides what a robot records.
    privileged: tuple[str, ...] = ()
    # Most actions that a chunk may begin with because the robot executes them: `act` then takes two further
    # tensors, `prefix` float32 [B, T, A], normalised, and `delay` int64 [B], and gives back the first `delay`
    # actions of each row as they are.
    max_delay: int = 0
    # Whether `loss` learns which commands are possible and which pictures show the scene, so that
    # `confidence` says it.
    selective: bool = False
    # Whether `loss` leaves out the actions that are not `valid`.
    masked: bool = False
    # The file of the tokenizer that it reads commands by.
    tokenizer: str = "tokenizer.json"

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode commands, once for each that is new."""
        raise NotImplementedError

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Compute one chunk for each observation."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms to be summed."""
        raise NotImplementedError


AnyModel: TypeAlias = "PolicyModel[DataclassInstance]"


class Architecture(Protocol):
    """What the file of an architecture defines."""

    # A dataclass of its own, with `tiny()` and `base()`.
    Config: Any
    Model: type[AnyModel]


def module_of(architecture: str) -> Architecture:
    """Return the module that defines an architecture's `Config` and `Model`.

    Raises:
        ValueError: no architecture has this name; the message lists those there are.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; available: {', '.join(ARCHITECTURES)}")
    return cast("Architecture", importlib.import_module(f"vla.models.{architecture}"))


def build(architecture: str, config: dict[str, Any], sizes: Sizes) -> AnyModel:
    """Make a model with fresh weights from the plain values of its configuration."""
    module = module_of(architecture)
    return module.Model(module.Config(**config), sizes)

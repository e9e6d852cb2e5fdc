"""A checkpoint: a folder that says all that export needs to know.

config.json        what the policy is: architecture, cameras, state, action space, statistics, safety
model.safetensors  its weights, float32 or float16; always computed in float32
example.json       one held-out frame in physical units: export turns it into the archive's self-test
example.<camera>.png
tokenizer.json     the policy's own tokenizer, where it is none of ours
provenance.json    where it comes from: command line, seed, commit, data, validation error
"""

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from vla.models import END_ID, AnyModel, Sizes, build, module_of
from vla_runtime.errors import SpecError
from vla_runtime.preprocessing import CommandTokenizer
from vla_runtime.spec import ActionSpace, Camera, Part, Safety, Tokenizer, Vector, dumps, upgrade_cameras
from vla_runtime.spec import load as load_part

CONFIG, WEIGHTS, EXAMPLE, PROVENANCE = "config.json", "model.safetensors", "example.json", "provenance.json"
# File of a tokenizer -> where it lies, and how commands are padded unless settings say otherwise: CLIP's
# entries, or the text's bytes.
ASSETS = Path(__file__).parent / "assets"
TOKENIZERS = {
    "tokenizer.json": (ASSETS / "clip", Tokenizer(file="tokenizer.json", context_length=77, pad_id=END_ID)),
    "bytes.json": (ASSETS / "bytes", Tokenizer(file="bytes.json", context_length=256, pad_id=0)),
}


def tokenizer_of(architecture: str) -> Tokenizer:
    """Return the tokenizer that an architecture reads commands by."""
    _, tokenizer = TOKENIZERS[module_of(architecture).Model.tokenizer]
    return tokenizer


class Config(Part, frozen=True):
    """What a checkpoint's policy is. The statistics are required: there is no default for them."""

    # Name of the policy as answers and metrics show it.
    name: str
    architecture: str
    # Values of the architecture's own `Config`.
    model: dict[str, Any]
    # All of one size, in the order of the model's C axis.
    cameras: tuple[Camera, ...]
    tokenizer: Tokenizer
    # None: the policy takes no proprioceptive state.
    state: Vector | None
    action: ActionSpace
    safety: Safety
    # The run's settings.
    training: dict[str, Any]
    format_version: Literal[2] = 2
    # Folder of the tokenizer's file where it is the policy's own, "." in a checkpoint; None: one of ours.
    tokenizer_from: str | None = None

    def __post_init__(self) -> None:
        sizes = sorted({size for camera in self.cameras for size in (camera.width, camera.height)})
        if len(sizes) != 1:
            raise SpecError(f"cameras must be at least one, square and of one size, got the sizes {sizes}")

    def sizes(self) -> Sizes:
        """Return the model's sizes; reads the tokenizer for the size of its vocabulary."""
        return Sizes(
            cameras=len(self.cameras),
            image_size=self.cameras[0].width,
            context_length=self.tokenizer.context_length,
            vocabulary=self.command_tokenizer().vocabulary,
            state=len(self.state.dimensions) if self.state else 0,
            horizon=self.action.horizon,
            action=self.action.width,
        )

    def command_tokenizer(self) -> CommandTokenizer:
        """Return the tokenizer that the policy reads commands with."""
        return CommandTokenizer(self.tokenizer_folder, self.tokenizer)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's file lies.

        Raises:
            SpecError: there is no such tokenizer.
        """
        if self.tokenizer_from is not None:
            return Path(self.tokenizer_from)
        if self.tokenizer.file not in TOKENIZERS:
            raise SpecError(f"no tokenizer {self.tokenizer.file!r}; available: {', '.join(TOKENIZERS)}")
        return TOKENIZERS[self.tokenizer.file][0]


class Example(Part, frozen=True):
    """A request as a client would send it: one frame that training never saw."""

    # Camera name -> image file beside `example.json`.
    images: dict[str, str]
    command: str
    # Physical units; empty for a policy without state.
    state: tuple[float, ...]


class Frame(msgspec.Struct, frozen=True):
    """An example before it is written."""

    images: np.ndarray  # uint8 [C, H, W, 3], RGB
    command: str
    state: np.ndarray  # float32 [S], physical units


def save(
    folder: Path, config: Config, model: nn.Module, example: Frame, provenance: dict[str, Any], *, half: bool
) -> None:
    """Write a checkpoint; `half` rounds the weights to float16."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = torch.float16 if half else torch.float32
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(_cast(weights, kind), folder / WEIGHTS)
    files = {camera.name: f"example.{camera.name}.png" for camera in config.cameras}
    for file, pixels in zip(files.values(), example.images, strict=True):
        Image.fromarray(pixels).save(folder / file)
    state = tuple(float(value) for value in example.state)
    (folder / EXAMPLE).write_bytes(dumps(Example(images=files, command=example.command, state=state)))
    (folder / PROVENANCE).write_bytes(msgspec.json.format(msgspec.json.encode(provenance), indent=2) + b"\n")
    if config.tokenizer_from is not None:
        file = config.tokenizer_folder / config.tokenizer.file
        (folder / config.tokenizer.file).write_bytes(file.read_bytes())
        config = msgspec.structs.replace(config, tokenizer_from=".")
    (folder / CONFIG).write_bytes(dumps(config))


def load(folder: Path) -> tuple[Config, AnyModel]:
    """Read a checkpoint; the model is in float32, on the CPU and in evaluation mode.

    Raises:
        SpecError: a file is missing, breaks a rule, or the weights do not fit the architecture.
        ValueError: no architecture has this name.
    """
    config = load_part(folder / CONFIG, Config, lambda plain: upgrade_cameras(plain["cameras"]))
    if config.tokenizer_from is not None:
        config = msgspec.structs.replace(config, tokenizer_from=str(folder))
    try:
        model = build(config.architecture, config.model, config.sizes())
    except TypeError as error:
        raise SpecError(f"{CONFIG}: model is no configuration of {config.architecture}: {error}") from error
    load_weights(model, folder / WEIGHTS)
    return config, model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a file, whatever its precision.

    Raises:
        SpecError: the file is missing, is damaged, or its names or shapes are not the model's.
    """
    if not path.is_file():
        raise SpecError(f"{path.name} is missing in {path.parent}")
    try:
        model.load_state_dict(_cast(load_file(path), torch.float32))
    except Exception as error:  # safetensors raises its own bare Exception, torch a RuntimeError
        raise SpecError(f"{path.name} does not fit the model of {CONFIG}: {error}") from error


def _cast(weights: dict[str, torch.Tensor], kind: torch.dtype) -> dict[str, torch.Tensor]:
    """Change the precision of what has one; counters stay as they are."""
    return {name: value.to(kind) if value.is_floating_point() else value for name, value in weights.items()}

"""LeRobot's pi0 and pi0.5: configuration, processors' steps, and the tokenizer that they come without."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from export.errors import ExportError
from export.foreign import paligemma, pi0, relative
from export.foreign.commands import tokenizer
from export.foreign.facts import max_delay
from export.foreign.folder import CONFIG, Folder
from export.foreign.pi0.model import Config, pi
from export.foreign.processors import PREPROCESSOR, converted
from export.foreign.tensors import read_shapes
from export.foreign.weights import load_weights
from export.source import Eager, Source
from vla_runtime.spec import Camera, Tokenizer

FIELDS = {
    "paligemma_variant", "action_expert_variant", "dtype", "chunk_size", "n_action_steps", "max_state_dim",
    "max_action_dim", "num_inference_steps", "min_period", "max_period", "image_resolution", "empty_cameras",
    "tokenizer_max_length",
}  # fmt: skip
# Of training and of speed; `rtc_config` is of requests that bring the rest of the last chunk. Relative
# actions are new in 0.6.
NEUTRAL = {
    "time_sampling_beta_alpha", "time_sampling_beta_beta", "time_sampling_scale", "time_sampling_offset",
    "use_relative_actions", "relative_exclude_joints", "action_feature_names", "rtc_config",
    "gradient_checkpointing", "compile_model", "compile_mode", "freeze_vision_encoder", "train_expert_only",
    "optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay", "optimizer_grad_clip_norm",
    "scheduler_warmup_steps", "scheduler_decay_steps", "scheduler_decay_lr",
}  # fmt: skip
# Steps of their processors beside those of all.
NEW_LINE, TOKENIZER = "pi0_new_line_processor", "tokenizer_processor"
PROMPT = "pi05_prepare_state_tokenizer_processor_step"
STEPS = frozenset((TOKENIZER, relative.RELATIVE, relative.ABSOLUTE))


def make(folder: Folder) -> Source:
    """Make a source of a folder of either.

    Raises:
        ExportError: it is not read, and the message says why.
        SpecError: what it says contradicts itself.
    """
    _check(folder)
    kind, shapes = folder.config["type"], read_shapes(folder.path)
    config = _config(folder, shapes)
    words = _words(folder, config.vocabulary)
    own = paligemma.OF_PI05 if kind == "pi05" else paligemma.OF_PI0
    table = paligemma.table(shapes, own)
    loaded = load_weights(folder.path, table, lambda: pi(config), folder.precision)
    action = folder.action(config.horizon, relative.places(folder))
    return Source(
        model=loaded.model,
        lowered=folder.precision == "bfloat16",
        name=folder.facts.name or kind,
        cameras=tuple(_letterbox(folder, camera, config.vision.picture) for camera in folder.cameras),
        state=msgspec.structs.replace(folder.state, padded_to=config.state),
        action=msgspec.structs.replace(action, padded_to=config.action),
        tokenizer=words,
        tokenizer_file=folder.facts.tokenizer,
        example=folder.example("pick up the cube"),
        noise=(config.horizon, config.action),
        max_delay=max_delay(folder.facts, config.horizon),
        architecture=f"lerobot_{kind}",
        eager=Eager(Path(pi0.__file__).parent, "pi0.model:build", asdict(config)),
        provenance=folder.provenance(
            _notes(folder, config),
            n_action_steps=folder.field("n_action_steps"),
            denoising_steps=config.steps,
            ignored_weights=len(loaded.ignored),
        ),
    )


def _words(folder: Folder, rows: int) -> Tokenizer:
    """Return how commands are read, with so many entries of the word embedding."""
    step, path = folder.before[TOKENIZER].config, folder.path / PREPROCESSOR
    template = "{command}\n" if NEW_LINE in folder.before else "{command}"
    found = tokenizer(
        folder.facts.tokenizer,
        rows,
        length=converted(path, step.get("max_length"), int),
        side=step.get("padding_side", "right"),
        template=paligemma.PROMPT if folder.config["type"] == "pi05" else template,
    )
    return msgspec.structs.replace(found, tidy=PROMPT in folder.before)


def _check(folder: Folder) -> None:
    variants = tuple(paligemma.VARIANTS)
    known = {"paligemma_variant": variants, "action_expert_variant": variants, "n_obs_steps": (1,)}
    folder.check_values(FIELDS, known | {"dtype": ("float32", "bfloat16")})
    if TOKENIZER not in folder.before:
        raise ExportError(
            f"{folder.path / PREPROCESSOR} has no step {TOKENIZER!r}, so nothing says how commands are read"
        )
    if folder.config["type"] == "pi05":
        order = [name for name in folder.before if name in ("normalizer_processor", PROMPT, TOKENIZER)]
        if order != ["normalizer_processor", PROMPT, TOKENIZER]:
            raise ExportError(
                f"{folder.path / PREPROCESSOR} must normalise the state, write it into the prompt by "
                f"{PROMPT!r}, and read that, in this order; it has: {', '.join(order)}"
            )


def _config(folder: Folder, shapes: paligemma.Shapes) -> Config:
    height, width = converted(folder.path / CONFIG, folder.field("image_resolution"), tuple[int, int])
    if height != width:
        raise ExportError(f"{folder.path / CONFIG}: image_resolution is {height} x {width}, which no pi0 has")
    fields: dict[str, Any] = {
        "vision": asdict(paligemma.tower(shapes, height)),
        "language": asdict(paligemma.language(shapes, folder.field("paligemma_variant"))),
        "expert": asdict(paligemma.expert(shapes, folder.field("action_expert_variant"))),
        "vocabulary": paligemma.vocabulary(shapes),
        "state": None if folder.config["type"] == "pi05" else folder.field("max_state_dim"),
        "action": folder.field("max_action_dim"),
        "horizon": folder.field("chunk_size"),
        "steps": folder.steps(folder.field("num_inference_steps")),
        "min_period": folder.field("min_period"),
        "max_period": folder.field("max_period"),
        "guidance": folder.facts.guidance,
    }
    config = converted(folder.path / CONFIG, fields, Config)
    if config.steps < 1:
        raise ExportError(f"denoising steps must be 1 at least, got {config.steps}")
    paligemma.check_pair(config.language, config.expert)
    return config


def _letterbox(folder: Folder, camera: Camera, edge: int) -> Camera:
    """Return a camera as a pi0 sees it.

    Where the policy knows pictures of its tower's size alone, the server fits what comes into it, as openpi's
    client does; other sizes must arrive as they are, and the module fits them as LeRobot does.
    """
    if camera.values != "zero_to_one":
        raise ExportError(
            f"{folder.path}: pictures are normalised by the dataset's statistics, which no pi0 is"
        )
    resize = "pad" if (camera.width, camera.height) == (edge, edge) else "none"
    return msgspec.structs.replace(camera, values="minus_one_to_one", resize=resize, interpolation="bilinear")


def _notes(folder: Folder, config: Config) -> list[str]:
    notes = paligemma.smaller(config.language, config.expert, folder.config)
    if relative.all_by_default(folder):
        notes.append("the folder names no actions, so LeRobot counts all from the state, the excluded too")
    if folder.field("dtype") == "bfloat16":
        notes.append("LeRobot computes it in bfloat16: --precision bfloat16 halves it here too")
    return notes

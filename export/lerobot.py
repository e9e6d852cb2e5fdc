"""LeRobot's folders as sources: `config.json`, `model.safetensors`, and the processors with the statistics.

    python -m export --from lerobot FOLDER --names meta/info.json --margin 0.5 --output model_store/act.mar

Read are the layouts of LeRobot 0.4.4 to 0.6.1; docs/import.md says which policies, and what is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.foreign import act, diffusion, lerobot_pi0, lerobot_smolvla
from export.foreign.facts import Facts, read_names
from export.foreign.folder import CONFIG, Folder
from export.foreign.processors import (
    POSTPROCESSOR,
    PREPROCESSOR,
    Step,
    converted,
    read_json,
    read_processor,
)
from export.foreign.resnet import DEPTHS
from export.foreign.weights import load_weights
from export.source import Source
from vla_runtime.spec import Precision

# Fields of every config.json that say nothing about what the policy computes.
NEUTRAL = {
    "type", "n_obs_steps", "input_features", "output_features", "normalization_mapping", "device", "use_amp",
    "use_peft", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path",
    "pretrained_revision",
}  # fmt: skip
TRAINING = {
    "optimizer_lr", "optimizer_weight_decay", "optimizer_lr_backbone", "kl_weight", "dropout", "use_vae",
    "n_vae_encoder_layers", "pretrained_backbone_weights",
}  # fmt: skip
ACT_FIELDS = {
    "chunk_size", "n_action_steps", "vision_backbone", "replace_final_stride_with_dilation", "pre_norm",
    "dim_model", "n_heads", "dim_feedforward", "feedforward_activation", "n_encoder_layers",
    "n_decoder_layers", "latent_dim", "temporal_ensemble_coeff",
}  # fmt: skip
DIFFUSION_FIELDS = {
    "horizon", "n_action_steps", "vision_backbone", "resize_shape", "crop_shape", "use_group_norm",
    "spatial_softmax_num_keypoints", "use_separate_rgb_encoder_per_camera", "down_dims", "kernel_size",
    "n_groups", "diffusion_step_embed_dim", "use_film_scale_modulation", "noise_scheduler_type",
    "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample",
    "clip_sample_range", "num_inference_steps",
}  # fmt: skip
# `crop_ratio` is already in `crop_shape`, or has no effect.
DIFFUSION_TRAINING = {
    "drop_n_last_frames", "crop_ratio", "crop_is_random", "pretrained_backbone_weights", "compile_model",
    "compile_mode", "do_mask_loss_for_padding", "optimizer_lr", "optimizer_betas", "optimizer_eps",
    "optimizer_weight_decay", "scheduler_name", "scheduler_warmup_steps", "gradient_checkpointing",
}  # fmt: skip


def make(path: Path, facts: Facts, precision: Precision = "float32") -> Source:
    """Read a policy's folder; a pi0's, pi0.5's or SmolVLA's weights in the precision that it is to have.

    Raises:
        ExportError: the folder is not read, and the message says why.
        SpecError: what it says contradicts itself.
    """
    config = read_json(path / CONFIG)
    kind = config.get("type")
    if not isinstance(kind, str) or "input_features" not in config:
        raise ExportError(f"{path / CONFIG} has no `type` and `input_features`: it is not one of LeRobot")
    if kind not in MAKERS:
        raise ExportError(f"{path} is a policy of type {kind!r}; read are: {', '.join(MAKERS)}")
    read = MAKERS[kind]
    _check_fields(path / CONFIG, config, read.fields)
    if facts.guidance and not read.flows:
        flows = ", ".join(name for name, one in MAKERS.items() if one.flows)
        raise ExportError(f"--guidance is for flows, which are: {flows}; this is a policy of type {kind!r}")
    before, after = _processors(path, config, read.steps)
    return read.make(Folder(path, config, facts, read_names(facts), before, after, precision))


def _act(folder: Folder) -> Source:
    _check_act(folder)
    notes = []
    if folder.field("temporal_ensemble_coeff") is not None:
        notes.append("temporal ensembling averages overlapping chunks: that is the client's to do")
    action = folder.action(folder.field("chunk_size"))
    sizes = tuple((camera.height, camera.width) for camera in folder.cameras)
    fields = folder.config | {
        "state": len(folder.state.dimensions),
        "action": len(action.dimensions),
        "pictures": sizes,
    }
    config = converted(folder.path / CONFIG, fields, act.Config)
    loaded = load_weights(folder.path, act.WEIGHTS, lambda: act.Act(config))
    return Source(
        model=loaded.model,
        name=folder.facts.name or "act",
        cameras=folder.cameras,
        state=folder.state,
        action=action,
        example=folder.example(),
        architecture="lerobot_act",
        provenance=folder.provenance(
            notes, n_action_steps=folder.field("n_action_steps"), ignored_weights=len(loaded.ignored)
        ),
    )


def _check_act(folder: Folder) -> None:
    known = {
        "vision_backbone": tuple(DEPTHS),
        "feedforward_activation": ("relu", "gelu"),
        "replace_final_stride_with_dilation": (False,),
        "n_obs_steps": (1,),
    }
    folder.check_values(ACT_FIELDS, known)


def _diffusion(folder: Folder) -> Source:
    config = _diffusion_config(folder)
    action = folder.action(config.n_action_steps)
    loaded = load_weights(folder.path, diffusion.weights(config), lambda: diffusion.Diffusion(config))
    return Source(
        model=loaded.model,
        name=folder.facts.name or "diffusion",
        cameras=folder.cameras,
        state=folder.state,
        action=action,
        example=folder.example(),
        history=config.n_obs_steps,
        noise=(config.horizon, config.action),
        architecture="lerobot_diffusion",
        provenance=folder.provenance(
            _scheduler_notes(folder, config), scheduler="DDIM", denoising_steps=config.steps
        ),
    )


def _diffusion_config(folder: Folder) -> diffusion.Config:
    known = {"vision_backbone": tuple(DEPTHS), "noise_scheduler_type": ("DDPM", "DDIM")}
    folder.check_values(DIFFUSION_FIELDS, known)
    sizes = {(camera.height, camera.width) for camera in folder.cameras}
    if len(sizes) > 1:
        raise ExportError(f"{folder.path / CONFIG}: cameras differ in size, which this policy does not allow")
    train = folder.field("num_train_timesteps")
    fields = folder.config | {
        "state": len(folder.state.dimensions),
        "action": len(folder.action(folder.field("n_action_steps")).dimensions),
        "cameras": len(folder.cameras),
        "picture": sizes.pop(),
        "steps": folder.steps(folder.field("num_inference_steps") or train),
    }
    config = converted(folder.path / CONFIG, fields, diffusion.Config)
    if not 1 <= config.steps <= train:
        raise ExportError(f"denoising steps must be 1 to {train}, the steps of training, got {config.steps}")
    return config


def _scheduler_notes(folder: Folder, config: diffusion.Config) -> list[str]:
    notes = []
    if folder.field("noise_scheduler_type") == "DDPM":
        notes.append(
            f"trained for DDPM, which draws noise at every step; served by DDIM over the same betas in "
            f"{config.steps} steps, noise from the request's seed alone: other samples of the same policy"
        )
    if config.steps > 20:
        notes.append(f"{config.steps} denoising steps an answer: --denoising-steps 10 is faster")
    return notes


@dataclass(frozen=True)
class Kind:
    """A type of policy: what its config.json may have, steps of its processors beside those of all."""

    fields: set[str]
    make: Callable[[Folder], Source]
    steps: frozenset[str] = frozenset()
    # Whether it is a flow, which guidance can draw towards given actions.
    flows: bool = False


MAKERS = {
    "act": Kind(ACT_FIELDS | TRAINING, _act),
    "diffusion": Kind(DIFFUSION_FIELDS | DIFFUSION_TRAINING, _diffusion),
    "pi0": Kind(
        lerobot_pi0.FIELDS | lerobot_pi0.NEUTRAL,
        lerobot_pi0.make,
        lerobot_pi0.STEPS | {lerobot_pi0.NEW_LINE},
        flows=True,
    ),
    "pi05": Kind(
        lerobot_pi0.FIELDS | lerobot_pi0.NEUTRAL,
        lerobot_pi0.make,
        lerobot_pi0.STEPS | {lerobot_pi0.PROMPT},
        flows=True,
    ),
    "smolvla": Kind(
        lerobot_smolvla.FIELDS | lerobot_smolvla.NEUTRAL,
        lerobot_smolvla.make,
        lerobot_smolvla.STEPS,
        flows=True,
    ),
}


def _check_fields(path: Path, config: dict[str, Any], fields: set[str]) -> None:
    unknown = sorted(config.keys() - fields - NEUTRAL)
    if unknown:
        raise ExportError(
            f"{path} has fields that are not known here, as of a newer LeRobot: {', '.join(unknown)}; "
            "read are the layouts of 0.4.4 to 0.6.1"
        )
    if config.get("use_peft"):
        raise ExportError(f"{path} has use_peft: merge the adapter into the weights first")


def _processors(
    path: Path, config: dict[str, Any], more: frozenset[str]
) -> tuple[dict[str, Step], dict[str, Step]]:
    names = {PREPROCESSOR: "normalizer_processor", POSTPROCESSOR: "unnormalizer_processor"}
    missing = [name for name in names if not (path / name).is_file()]
    modes = config.get("normalization_mapping")
    # Without modes LeRobot would normalise by its defaults.
    if missing and isinstance(modes, dict) and set(modes.values()) == {"IDENTITY"}:
        before, after = ({name: Step(name, {"norm_map": modes}, {})} for name in names.values())
        return before, after
    if missing:
        raise ExportError(
            f"{path} has no {' and no '.join(missing)}, so no statistics of the training data: save the "
            "processors beside the policy (LeRobot before 0.4 kept them in the weights; its "
            "migrate_policy_normalization.py writes these files)"
        )
    before, after = (
        read_processor(path / file, {step, "rename_observations_processor", *more})
        for file, step in names.items()
    )
    for file, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        if names[file] not in steps:
            raise ExportError(f"{path / file} has no step {names[file]!r}, so no statistics")
    return before, after

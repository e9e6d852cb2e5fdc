"""LeRobot's SmolVLA: configuration, where its weights go, and what its vision-language model is."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from export.errors import ExportError
from export.foreign import pi0
from export.foreign.commands import tokenizer
from export.foreign.facts import max_delay
from export.foreign.folder import CONFIG, Folder
from export.foreign.pi0.smolvla import Config, SmolVLA
from export.foreign.processors import PREPROCESSOR, converted, read_json
from export.foreign.tensors import Shapes, read_shapes
from export.foreign.weights import Table, depth_of, load_weights, shape_of
from export.source import Eager, Source
from vla_runtime.spec import Camera, Tokenizer

FIELDS = {
    "chunk_size", "n_action_steps", "max_state_dim", "max_action_dim", "resize_imgs_with_padding",
    "empty_cameras", "adapt_to_pi_aloha", "use_delta_joint_actions_aloha", "tokenizer_max_length",
    "num_steps", "use_cache", "vlm_model_name", "load_vlm_weights", "add_image_special_tokens",
    "attention_mode", "num_expert_layers", "num_vlm_layers", "self_attn_every_n_layers",
    "expert_width_multiplier", "min_period", "max_period",
}  # fmt: skip
# Of training and of speed. What a command or the prefix is padded with no token sees; `rtc_config` is of
# requests that bring the rest of the last chunk.
NEUTRAL = {
    "freeze_vision_encoder", "train_expert_only", "train_state_proj", "optimizer_lr", "optimizer_betas",
    "optimizer_eps", "optimizer_weight_decay", "optimizer_grad_clip_norm", "scheduler_warmup_steps",
    "scheduler_decay_steps", "scheduler_decay_lr", "prefix_length", "pad_language_to", "rtc_config",
    "compile_model", "compile_mode",
}  # fmt: skip
NEW_LINE, TOKENIZER = "smolvla_new_line_processor", "tokenizer_processor"
STEPS = frozenset((NEW_LINE, TOKENIZER))

BOTH = "model.vlm_with_expert."
LANGUAGE, TOWER = f"{BOTH}vlm.model.text_model.", f"{BOTH}vlm.model.vision_model."
EXPERT, PROJECTOR = f"{BOTH}lm_expert.", f"{BOTH}vlm.model.connector.modality_projection.proj."
EMBEDDING, HEAD = f"{LANGUAGE}embed_tokens.weight", f"{BOTH}vlm.lm_head.weight"
OUTER = ("state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")
# The shape of a weight; an error calls it no SmolVLA's.
_shape = partial(shape_of, policy="SmolVLA")


class Text(msgspec.Struct):
    """The language model in the vision-language model's config.json, with transformers' defaults."""

    hidden_size: int = 4096
    num_attention_heads: int = 32
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False


class Vision(msgspec.Struct):
    """Its picture tower."""

    num_attention_heads: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


class Described(msgspec.Struct):
    """Its config.json, as far as the weights' shapes do not say it."""

    text_config: Text
    vision_config: Vision


@dataclass(frozen=True)
class Vlm:
    """What the shapes of its weights do not say of a SmolVLM."""

    head_dim: int
    epsilon: float
    tower_heads: int


# Width of the language model, and the rest, by name.
KNOWN = {"HuggingFaceTB/SmolVLM2-500M-Video-Instruct": (960, Vlm(64, 1e-5, 12))}


def make(folder: Folder) -> Source:
    """Make a source of a folder.

    Raises:
        ExportError: it is not read, and the message says why.
        SpecError: what it says contradicts itself.
    """
    _check(folder)
    shapes = read_shapes(folder.path)
    config = config_of(folder, shapes)
    loaded = load_weights(folder.path, table(shapes), lambda: SmolVLA(config), folder.precision)
    action = msgspec.structs.replace(folder.action(config.horizon), padded_to=config.action)
    return Source(
        model=loaded.model,
        lowered=folder.precision == "bfloat16",
        name=folder.facts.name or "smolvla",
        cameras=tuple(_camera(folder, camera) for camera in folder.cameras),
        state=msgspec.structs.replace(folder.state, padded_to=config.state),
        action=action,
        tokenizer=_words(folder, config.vocabulary),
        tokenizer_file=folder.facts.tokenizer,
        example=folder.example("pick up the cube"),
        noise=(config.horizon, config.action),
        max_delay=max_delay(folder.facts, config.horizon),
        architecture="lerobot_smolvla",
        eager=Eager(Path(pi0.__file__).parent, "pi0.smolvla:build", asdict(config)),
        provenance=folder.provenance(
            _notes(folder),
            n_action_steps=folder.field("n_action_steps"),
            denoising_steps=config.steps,
            ignored_weights=len(loaded.ignored),
        ),
    )


def table(shapes: Shapes) -> Table:
    """Return where each key goes."""
    # The word embedding is kept under the head's name alone where the two are tied.
    words = EMBEDDING if EMBEDDING in shapes else HEAD
    taken = {
        TOWER: "vision.",
        PROJECTOR: "projector.",
        words: "embed_tokens.weight",
        f"{LANGUAGE}layers.": "language.",
        f"{EXPERT}layers.": "expert.",
        f"{EXPERT}norm.": "norm.",
    } | {f"model.{name}.": f"{name}." for name in OUTER}
    ignored = {f"{LANGUAGE}norm.weight": "what comes after SmolVLM's last layer is never used"}
    if words == EMBEDDING:
        ignored[HEAD] = "SmolVLM says no words"
    return Table(tuple(taken.items()), tuple(ignored.items()))


def _check(folder: Folder) -> None:
    known = {
        "n_obs_steps": (1,),
        "adapt_to_pi_aloha": (False,),
        "use_delta_joint_actions_aloha": (False,),
        "use_cache": (True,),
        "add_image_special_tokens": (False,),
        "attention_mode": ("cross_attn", "self_attn"),
    }
    folder.check_values(FIELDS, known)
    layers, own = folder.field("num_vlm_layers"), folder.field("num_expert_layers")
    if own > 0 and own != layers:
        raise ExportError(
            f"{folder.path / CONFIG}: num_expert_layers is {own} beside {layers} of the vision-language "
            "model; an expert of as many is read"
        )
    if TOKENIZER not in folder.before:
        raise ExportError(
            f"{folder.path / PREPROCESSOR} has no step {TOKENIZER!r}, so nothing says how commands are read"
        )


def config_of(folder: Folder, shapes: Shapes) -> Config:
    """Return the sizes of a folder's policy, whose weights have these shapes.

    Raises:
        ExportError: they are none of a SmolVLA's, or of another one.
    """
    edge, vlm = _edge(folder), _vlm(folder, shapes)
    width, _, patch, _ = _shape(shapes, f"{TOWER}embeddings.patch_embedding.weight", 4)
    positions, _ = _shape(shapes, f"{TOWER}embeddings.position_embedding.weight", 2)
    _, projected = _shape(shapes, f"{PROJECTOR}weight", 2)
    trained, merged = (round(value**0.5) for value in (positions, projected / width))
    if edge % patch or (edge // patch) % merged:
        raise ExportError(
            f"{folder.path / CONFIG}: pictures of {edge} x {edge} pixels don't part into patches of {patch}, "
            f"{merged} x {merged} of which are one token"
        )
    if width % vlm.tower_heads:
        raise ExportError(f"the picture tower is {width} wide, which {vlm.tower_heads} heads can't share")
    fields: dict[str, Any] = {
        "vision": {
            "width": width,
            "depth": depth_of(shapes, f"{TOWER}encoder.layers."),
            "mlp": _shape(shapes, f"{TOWER}encoder.layers.0.mlp.fc1.weight", 2)[0],
            "heads": vlm.tower_heads,
            "patch": patch,
            "picture": edge,
        },
        "language": _layers(shapes, LANGUAGE, vlm),
        "expert": _layers(shapes, EXPERT, vlm),
        "vocabulary": _shape(shapes, EMBEDDING if EMBEDDING in shapes else HEAD, 2)[0],
        "trained": trained,
        "merged": merged,
        "state": folder.field("max_state_dim"),
        "action": folder.field("max_action_dim"),
        "horizon": folder.field("chunk_size"),
        "steps": folder.steps(folder.field("num_steps")),
        "min_period": folder.field("min_period"),
        "max_period": folder.field("max_period"),
        "own_every": _own_every(folder),
        "guidance": folder.facts.guidance,
    }
    config = converted(folder.path / CONFIG, fields, Config)
    _check_layers(folder, config)
    return config


def _check_layers(folder: Folder, config: Config) -> None:
    if config.steps < 1:
        raise ExportError(f"denoising steps must be 1 at least, got {config.steps}")
    pairs = [(s.depth, s.heads, s.kv_heads) for s in (config.language, config.expert)]
    if pairs[0] != pairs[1]:
        raise ExportError(
            "the weights are no SmolVLA's: layers, heads and heads of keys are "
            f"{pairs[0]} in SmolVLM and {pairs[1]} in the expert"
        )
    layers = folder.field("num_vlm_layers")
    if 0 < layers != config.language.depth:
        raise ExportError(
            f"{folder.path / CONFIG}: num_vlm_layers is {layers}, and the weights have "
            f"{config.language.depth}"
        )


def _edge(folder: Folder) -> int:
    """Return the edge of the square that pictures are fitted into [pixels]."""
    path, found = folder.path / CONFIG, folder.field("resize_imgs_with_padding")
    width, height = converted(path, found, tuple[int, int])
    if width != height:
        raise ExportError(
            f"{path}: resize_imgs_with_padding is {width} x {height}, and a SmolVLM's pictures are square"
        )
    return width


def _own_every(folder: Folder) -> int:
    if folder.field("attention_mode") == "self_attn":
        return 1
    return max(0, folder.field("self_attn_every_n_layers"))


def _vlm(folder: Folder, shapes: Shapes) -> Vlm:
    """Return what the vision-language model's own config.json says, or what is known of it by name."""
    name, (_, width) = (
        folder.field("vlm_model_name"),
        _shape(shapes, f"{LANGUAGE}layers.0.mlp.up_proj.weight", 2),
    )
    if folder.facts.vlm is None:
        known, found = KNOWN.get(name, (None, None))
        if found is None or known != width:
            raise ExportError(
                f"{folder.path / CONFIG} names the vision-language model {name}, and nothing says how its "
                f"heads share a width of {width}: give --vlm FILE, that model's config.json"
            )
        return found
    path = folder.facts.vlm
    described = converted(path, read_json(path), Described)
    text, vision = described.text_config, described.vision_config
    if text.hidden_size != width:
        raise ExportError(f"{path} is of a model {text.hidden_size} wide, and the weights' has {width}")
    acts, biases = (text.hidden_act, vision.hidden_act), (text.attention_bias, text.mlp_bias)
    if acts != ("silu", "gelu_pytorch_tanh") or any(biases) or vision.layer_norm_eps != 1e-6:
        raise ExportError(f"{path} is of no SmolVLM: other activations, biases or an epsilon")
    head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
    return Vlm(head_dim, text.rms_norm_eps, vision.num_attention_heads)


def _layers(shapes: Shapes, start: str, vlm: Vlm) -> dict[str, Any]:
    """Return the sizes of a stack of layers, by its first one, which attends to its own tokens."""
    mlp, width = _shape(shapes, f"{start}layers.0.mlp.up_proj.weight", 2)
    queries, _ = _shape(shapes, f"{start}layers.0.self_attn.q_proj.weight", 2)
    keys, _ = _shape(shapes, f"{start}layers.0.self_attn.k_proj.weight", 2)
    if keys % vlm.head_dim or queries % keys:
        raise ExportError(
            f"the weights are no SmolVLA's: {queries} and {keys} in {start}layers.0.self_attn are no "
            f"heads of {vlm.head_dim}"
        )
    return {
        "width": width,
        "depth": depth_of(shapes, f"{start}layers."),
        "mlp": mlp,
        "heads": queries // vlm.head_dim,
        "kv_heads": keys // vlm.head_dim,
        "head_dim": vlm.head_dim,
        "epsilon": vlm.epsilon,
    }


def _words(folder: Folder, rows: int) -> Tokenizer:
    """Return how commands are read, with so many entries of the word embedding."""
    step, path = folder.before[TOKENIZER].config, folder.path / PREPROCESSOR
    return tokenizer(
        folder.facts.tokenizer,
        rows,
        length=converted(path, step.get("max_length"), int),
        side=step.get("padding_side", "right"),
        template="{command}\n" if NEW_LINE in folder.before else "{command}",
        model=folder.field("vlm_model_name"),
    )


def _camera(folder: Folder, camera: Camera) -> Camera:
    """Return a camera as SmolVLA sees it: the module fits pictures, which arrive in the dataset's size."""
    if camera.values != "zero_to_one":
        raise ExportError(
            f"{folder.path}: pictures are normalised by the dataset's statistics, which no SmolVLA is"
        )
    return msgspec.structs.replace(camera, values="minus_one_to_one")


def _notes(folder: Folder) -> list[str]:
    if not folder.field("load_vlm_weights"):
        return []
    return [
        "LeRobot computes its vision-language model in bfloat16: --precision bfloat16 lowers all of it here"
    ]

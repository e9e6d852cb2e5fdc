"""Golden truth of LeRobot 0.6: tiny policies of pi0, pi0.5, SmolVLA and ACT, and what they answer.

`make golden-flow` runs it in an environment of its own, which has LeRobot 0.6.1. It writes what
make_lerobot.py writes, and tokenizers of their kinds. LeRobot knows each in one size alone, so that size is
made smaller here, by what it calls to build the model; all else is its own code.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import make_smolvlm
import numpy as np
import torch
from drawn import picture, weight
from kept import keep
from lerobot.configs import RTCAttentionSchedule
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi0.modeling_pi0 import PI0Policy
from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.smolvla import modeling_smolvla
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import tokenizer_processor
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, GemmaTokenizer

HERE = Path(__file__).parent
COMMANDS = (
    "pick up the red cube",
    "open the drawer, then close it",
    "Stapel die Würfel übereinander ⚙",
    "wipe  the table",
)
JOINTS = json.loads((HERE / "act" / "meta" / "info.json").read_text())["features"]["action"]["names"]
WIDTHS = {"gemma_2b": 64, "gemma_300m": 32}


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy to make: its folder's name, its cameras as (height, width), fields of its configuration."""

    name: str
    cameras: dict[str, tuple[int, int]]
    fields: dict[str, Any]
    # Rule of state and actions.
    mode: str = "MEAN_STD"
    kind: str = "pi0"
    # Whether requests are computed again, guided by the answer before them.
    guided: bool = False


CASES = (
    Case(
        "pi0", {"observation.images.front": (72, 96), "observation.images.wrist": (56, 56)}, {}, guided=True
    ),
    Case(
        "pi0_one_camera",
        {"observation.images.top": (40, 30)},
        {"empty_cameras": 2, "max_state_dim": 16, "num_inference_steps": 3, "min_period": 0.01},
        mode="MIN_MAX",
    ),
    Case(
        "pi05",
        {"observation.images.front": (72, 96), "observation.images.wrist": (56, 56)},
        {},
        mode="QUANTILES",
        kind="pi05",
        guided=True,
    ),
    Case(
        "pi0_relative",
        {"observation.images.wrist": (56, 56)},
        {
            "action_feature_names": JOINTS,
            "relative_exclude_joints": ["gripper"],
            "use_relative_actions": True,
        },
    ),
    Case(
        "act_0_6",
        {"observation.images.front": (64, 96)},
        {"dim_feedforward": 64, "dim_model": 32, "latent_dim": 8, "n_encoder_layers": 2, "n_heads": 4},
        kind="act",
    ),
    Case(
        "smolvla",
        {"observation.images.front": (72, 96), "observation.images.wrist": (64, 64)},
        {"num_vlm_layers": 4},
        kind="smolvla",
        guided=True,
    ),
    Case(
        "smolvla_one_camera",
        {"observation.images.top": (40, 30)},
        {
            "attention_mode": "self_attn",
            "empty_cameras": 1,
            "max_state_dim": 16,
            "num_steps": 3,
            "num_vlm_layers": 0,
            "prefix_length": 80,
            "resize_imgs_with_padding": (48, 48),
        },
        mode="MIN_MAX",
        kind="smolvla",
    ),
)
KINDS = {
    "pi0": (PI0Config, PI0Policy),
    "pi05": (PI05Config, PI05Policy),
    "act": (ACTConfig, ACTPolicy),
    "smolvla": (SmolVLAConfig, SmolVLAPolicy),
}
# Actions that a guided chunk begins with.
DELAY = 2
CHUNK = {"chunk_size": 5, "n_action_steps": 5}
# Fields of every configuration of a kind.
SMALL: dict[str, dict[str, Any]] = {
    "pi0": CHUNK | {"image_resolution": (56, 56), "num_inference_steps": 4},
    "pi05": CHUNK | {"image_resolution": (56, 56), "num_inference_steps": 4},
    "act": CHUNK | {"pretrained_backbone_weights": None},
    "smolvla": CHUNK | {"resize_imgs_with_padding": (64, 64), "num_steps": 4},
}


def write_full_size() -> None:
    """Record keys and shapes of each as LeRobot builds it, before it is made smaller here."""
    built = {"full_size": modeling_pi0.PI0Pytorch, "full_size_pi05": modeling_pi05.PI05Pytorch}
    for (name, model), (config, _) in zip(built.items(), KINDS.values(), strict=False):
        with torch.device("meta"):
            state = model(config(device="cpu")).state_dict()
        shapes = {f"model.{key}": list(value.shape) for key, value in state.items()}
        (HERE / "paligemma" / f"{name}.json").write_text(json.dumps(shapes) + "\n")
    make_smolvlm.use(make_smolvlm.full_size())
    with torch.device("meta"):
        state = modeling_smolvla.VLAFlowMatching(SmolVLAConfig(device="cpu")).state_dict()
    shapes = {f"model.{key}": list(value.shape) for key, value in state.items()}
    (HERE / "smolvlm" / "full_size.json").write_text(json.dumps(shapes) + "\n")


def smaller(module: ModuleType, vocabulary: int) -> None:
    """Let a module of LeRobot's build a policy that is small and knows so many tokens."""
    paligemma = module.PaliGemmaForConditionalGenerationWithPiGemma
    expert = module.PiGemmaForCausalLM

    def sizes(variant: str) -> Any:
        width = WIDTHS[variant]
        return module.GemmaConfig(width, 2, 2 * width, 4, 1, 16)

    def small_paligemma(config: Any) -> Any:
        config.text_config.vocab_size = vocabulary
        vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        for name, value in (vision | {"projection_dim": WIDTHS["gemma_2b"]}).items():
            setattr(config.vision_config, name, value)
        config.projection_dim = WIDTHS["gemma_2b"]
        return paligemma(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = 8
        return expert(config=config)

    module.get_gemma_config = sizes
    module.PaliGemmaForConditionalGenerationWithPiGemma = small_paligemma
    module.PiGemmaForCausalLM = small_expert


def make_tokenizer(folder: Path) -> int:
    """Write a tokenizer of PaliGemma's kind, and return the number of its tokens without `<image>`."""
    model = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    model.normalizer = normalizers.Replace(" ", "▁")
    model.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    model.decoder = decoders.Fuse()
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{number:02X}>" for number in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, initial_alphabet=["\n"], show_progress=False
    )
    model.train_from_iterator([command for command in COMMANDS if command.isascii()] * 4, trainer)
    learnt = json.loads(model.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = GemmaTokenizer(vocab=learnt["vocab"], merges=merges, add_bos_token=True)
    known = len(tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return known


def statistics(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Return what a dataset says of its features, in degrees."""
    random = np.random.RandomState(7)
    found = {}
    for key in ("observation.state", "action"):
        mean, std = random.uniform(-40, 40, len(JOINTS)), random.uniform(2, 30, len(JOINTS))
        if key == "action" and "use_relative_actions" in case.fields:
            mean, std = mean / 10, std / 10
        values = {"mean": mean, "std": std, "min": mean - 2 * std, "max": mean + 2.5 * std}
        if case.mode == "QUANTILES":
            values |= {"q01": mean - 1.5 * std, "q99": mean + 1.8 * std}
        found[key] = {name: value.astype(np.float32) for name, value in values.items()}
    for key in case.cameras:
        found[key] = {name: np.full((3, 1, 1), 0.4, np.float32) for name in ("mean", "std")}
    return found


def save(case: Case, folder: Path) -> None:
    """Write the policy and its processors as the library does."""
    width = (len(JOINTS),)
    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key, size in case.cameras.items()}
    modes = {"VISUAL": "IDENTITY", "STATE": case.mode, "ACTION": case.mode}
    make, kind = KINDS[case.kind]
    config = make(
        input_features=inputs | {"observation.state": PolicyFeature(FeatureType.STATE, width)},
        output_features={"action": PolicyFeature(FeatureType.ACTION, width)},
        normalization_mapping={kind: NormalizationMode(mode) for kind, mode in modes.items()},
        device="cpu",
        **SMALL[case.kind] | case.fields,
    )
    policy = kind(config)
    with torch.no_grad():
        for key, value in policy.state_dict().items():
            value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=statistics(case)):
        processor.save_pretrained(folder)
    (folder / "meta").mkdir()
    shutil.copyfile(HERE / "act" / "meta" / "info.json", folder / "meta" / "info.json")


def answers(case: Case, folder: Path) -> list[dict[str, object]]:
    """Read the folder as a user of the library does, and compute requests."""
    policy = KINDS[case.kind][1].from_pretrained(folder)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    found, last = [], None
    for seed, command in enumerate(COMMANDS):
        drawn = request(case, seed)
        told = {"seed": seed, "steps": [drawn]}
        if case.kind != "act":
            told["command"] = command
            shape = (policy.config.chunk_size, policy.config.max_action_dim)
            noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))[None]
            policy.model.sample_noise = lambda _shape, _device, noise=noise: noise
        with torch.inference_mode():
            chunk = policy.predict_action_chunk(before(observation(case, drawn, command)))
        told["actions"] = after(chunk)[0].tolist()
        if case.guided and last is not None:
            told["previous"] = after(last)[0].tolist()
            told["guided"] = after(guided(policy, before(observation(case, drawn, command)), last))[
                0
            ].tolist()
        found.append(told)
        last = chunk[:, 1:]
    return found


def guided(policy: Any, observed: dict[str, Any], last: torch.Tensor) -> torch.Tensor:
    """Return a chunk that is drawn towards the first DELAY actions of what is left of the last one."""
    policy.config.rtc_config = RTCConfig(prefix_attention_schedule=RTCAttentionSchedule.ZEROS)
    policy.init_rtc_processor()
    chunk = policy.predict_action_chunk(observed, inference_delay=DELAY, prev_chunk_left_over=last)
    policy.config.rtc_config = None
    policy.init_rtc_processor()
    return chunk


def request(case: Case, seed: int) -> dict[str, Any]:
    """Draw one observation: the seeds of its pictures, and the state."""
    told, random = statistics(case)["observation.state"], np.random.RandomState(100 * seed)
    state = (told["mean"] + told["std"] * random.uniform(-2, 2, len(JOINTS))).astype(np.float32)
    if case.mode == "QUANTILES":
        # A gripper that rests at the end of its range.
        state[-1] = told["q01"][-1]
    pictures = {key: 100 * seed + place for place, key in enumerate(case.cameras)}
    return {"pictures": pictures, "state": state.tolist()}


def observation(case: Case, drawn: dict[str, Any], command: str) -> dict[str, object]:
    """Make an observation as LeRobot's own control loop does."""
    seen = {key: picture(drawn["pictures"][key], *size) for key, size in case.cameras.items()}
    state = np.array(drawn["state"], np.float32)
    found = {**seen, "observation.state": state}
    return prepare_observation_for_inference(found, torch.device("cpu"), task=command)


def write(case: Case) -> None:
    """Make one policy's golden folder anew."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / case.name
        save(case, folder)
        action = statistics(case)["action"]
        recorded = {
            "delay": DELAY,
            "made_with": {name: version(name) for name in ("lerobot", "transformers", "torch", "numpy")},
            "sizes": case.cameras,
            "range": (action["max"] - action["min"]).tolist(),
            "requests": answers(case, folder),
        }
        keep(folder, HERE / case.name, recorded)


def read_small(folder: Path) -> None:
    """Let LeRobot make small policies, with tokenizers of `folder`; keep those for the tests."""
    paligemma, smolvlm = folder / "paligemma", folder / "smolvlm"
    known = make_tokenizer(paligemma)
    smaller(modeling_pi0, known)
    smaller(modeling_pi05, known)
    make_smolvlm.write(smolvlm, [command for command in COMMANDS if command.isascii()] * 4)
    make_smolvlm.use(AutoConfig.from_pretrained(smolvlm))
    read = tokenizer_processor.AutoTokenizer.from_pretrained
    # The step asks a hub for them.
    tokenizer_processor.AutoTokenizer.from_pretrained = lambda name: read(
        smolvlm if "SmolVLM" in name else paligemma
    )
    for file in (paligemma / "tokenizer.json", smolvlm / "tokenizer.json", smolvlm / "config.json"):
        shutil.copyfile(file, HERE / file.parent.name / file.name)


if __name__ == "__main__":
    for name in ("paligemma", "smolvlm"):
        (HERE / name).mkdir(exist_ok=True)
    write_full_size()
    with tempfile.TemporaryDirectory() as temporary:
        read_small(Path(temporary))
        for case in CASES:
            if case.name in (sys.argv[1:] or [case.name]):
                write(case)
                print(f"{HERE / case.name} is made anew")

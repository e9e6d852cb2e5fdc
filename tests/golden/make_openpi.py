"""Golden truth of openpi: tiny policies of the real library, by its own training configurations.

`make golden-openpi` runs it in an environment of its own, beside a checkout of openpi. For each policy it
writes a folder as openpi's converter to PyTorch does, and what make_lerobot.py writes besides. openpi knows
its models in one size alone, so that size is made smaller here, by what it calls to build them, and they
compute in float32; PaliGemma's tokenizer comes from a bucket, and is that of the golden pi0 here. All else,
from the request to the robot's actions, is its own code.
"""

import dataclasses
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from drawn import picture, weight
from kept import keep
from safetensors.torch import load_file, save_file, save_model
from tokenizers import Tokenizer

# Its data sets, of training alone.
for name in (
    "lerobot",
    "lerobot.common",
    "lerobot.common.datasets",
    "lerobot.common.datasets.lerobot_dataset",
):
    sys.modules[name] = ModuleType(name)

from openpi.models import gemma  # noqa: E402
from openpi.models import tokenizer as openpi_tokenizer  # noqa: E402
from openpi.models_pytorch import gemma_pytorch, pi0_pytorch  # noqa: E402
from openpi.policies import aloha_policy, policy_config  # noqa: E402
from openpi.shared import normalize  # noqa: E402
from openpi.training import config as training  # noqa: E402

HERE = Path(__file__).parent
TOKENIZER = HERE / "paligemma" / "tokenizer.json"
COMMANDS = (
    "pick up the red cube",
    " open_the drawer,\nthen close it ",
    "Stapel die Würfel ⚙",
    "wipe  the table",
)
WIDTHS = {"gemma_2b": 64, "gemma_300m": 32}
HORIZON = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy to make: openpi's configuration, what we call its robot, cameras as (height, width)."""

    config: str
    robot: str
    asset: str
    cameras: dict[str, tuple[int, int]]
    state: int
    action: int
    # Further dimensions that the statistics have.
    beyond: int = 0

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"openpi_{self.config}"


ALOHA = {"cam_high": (72, 96), "cam_left_wrist": (48, 64), "cam_right_wrist": (64, 48)}
DROID = {"exterior_image_1_left": (72, 128), "wrist_image_left": (72, 96)}
LIBERO = {"image": (224, 224), "wrist_image": (256, 256)}
CASES = (
    Case("pi0_aloha", "aloha", "trossen", ALOHA, 14, 14),
    Case(
        "pi0_aloha_sim",
        "aloha_sim",
        "lerobot/aloha_sim_transfer_cube_human",
        {"cam_high": (60, 80)},
        14,
        14,
        18,
    ),
    Case("pi0_libero", "libero_delta", "physical-intelligence/libero", LIBERO, 8, 7, 2),
    Case("pi05_droid", "droid", "droid", DROID, 8, 8),
    Case("pi05_full_droid_finetune", "droid_joint_position", "droid", DROID, 8, 8),
    Case("pi05_libero", "libero", "physical-intelligence/libero", LIBERO, 8, 7),
)


class Words:
    """The golden tokenizer, as sentencepiece's is called."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(TOKENIZER))

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Return the tokens of a text."""
        return self._tokenizer.encode(text, add_special_tokens=add_bos).ids


def read_words(self: openpi_tokenizer.PaligemmaTokenizer, max_len: int = 48) -> None:
    """Make openpi's tokenizer without its bucket."""
    self._max_len, self._tokenizer = max_len, Words()


def smaller() -> None:
    """Let openpi build policies that are small, in float32, around the golden tokenizer."""
    words = json.loads(TOKENIZER.read_text())["added_tokens"][-1]["id"]
    paligemma, expert = gemma_pytorch.PaliGemmaForConditionalGeneration, gemma_pytorch.GemmaForCausalLM

    def sizes(variant: str) -> Any:
        width = WIDTHS[variant]
        return gemma.Config(width, 2, 2 * width, 4, 1, 16)

    def small_paligemma(config: Any) -> Any:
        config.text_config.vocab_size = words
        vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "projection_dim": 64}
        for name, value in vision.items():
            setattr(config.vision_config, name, value)
        config.projection_dim = 64
        return paligemma(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = 8
        return expert(config=config)

    gemma.get_config = sizes
    gemma_pytorch.PaliGemmaForConditionalGeneration = small_paligemma
    gemma_pytorch.GemmaForCausalLM = small_expert
    gemma_pytorch.PaliGemmaWithExpertModel.to_bfloat16_for_selected_params = lambda self, _precision: (
        self.float()
    )
    openpi_tokenizer.PaligemmaTokenizer.__init__ = read_words


def configuration(case: Case) -> training.TrainConfig:
    """Return openpi's configuration: not compiled, its chunks cut short, its statistics in the folder."""
    found = training.get_config(case.config)
    model = dataclasses.replace(
        found.model, dtype="float32", action_horizon=HORIZON, pytorch_compile_mode=None
    )
    more = {"rlds_data_dir": "none"} if hasattr(found.data, "rlds_data_dir") else {}
    data = dataclasses.replace(found.data, assets=training.AssetsConfig(asset_id=case.asset), **more)
    return dataclasses.replace(found, model=model, data=data)


def statistics(case: Case) -> dict[str, normalize.NormStats]:
    """Return what a data set says of state and actions, in the policy's numbers."""
    random, found = np.random.RandomState(7), {}
    for key, width in (("state", case.state), ("actions", case.action)):
        mean, std = random.uniform(-1, 1, width), random.uniform(0.05, 0.5, width)
        if "aloha" in case.robot:
            mean[[6, 13]], std[[6, 13]] = 0.4, 0.2
        padded = (np.pad(values, (0, case.beyond)) for values in (mean, std, mean - 2 * std, mean + 2 * std))
        found[key] = normalize.NormStats(*padded)
    return found


def save(case: Case, folder: Path) -> None:
    """Write the policy's folder as openpi's converter does, and a names file."""
    model_config = configuration(case).model
    model, path = pi0_pytorch.PI0Pytorch(model_config), folder / "model.safetensors"
    folder.mkdir()
    save_model(model, path)
    save_file(
        {key: torch.from_numpy(weight(key, tuple(v.shape))) for key, v in load_file(path).items()}, path
    )
    normalize.save(folder / "assets" / case.asset, statistics(case))
    said = ("action_dim", "action_horizon", "paligemma_variant", "action_expert_variant")
    config = {name: getattr(model_config, name) for name in said} | {"precision": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    names = {
        "control_hz": 20,
        "state": [f"s{place}" for place in range(case.state)],
        "action": [f"a{place}" for place in range(case.action)],
    }
    (folder / "meta").mkdir()
    (folder / "meta" / "names.json").write_text(json.dumps(names) + "\n")


def answers(case: Case, folder: Path) -> list[dict[str, object]]:
    """Read the folder as a user of the library does, and compute requests."""
    policy = policy_config.create_trained_policy(configuration(case), folder, pytorch_device="cpu")
    found = []
    for seed, command in enumerate(COMMANDS):
        drawn = request(case, seed)
        noise = np.random.default_rng(seed).standard_normal((HORIZON, 32), np.float32)
        actions = policy.infer(observation(case, drawn, command), noise=noise)["actions"]
        found.append({"seed": seed, "command": command, "steps": [drawn], "actions": actions.tolist()})
    return found


def request(case: Case, seed: int) -> dict[str, Any]:
    """Draw one observation: the seeds of its pictures, and the state in the robot's numbers."""
    told, random = statistics(case)["state"], np.random.RandomState(100 * seed)
    mean, std = told.mean[: case.state], told.std[: case.state]
    state = mean + std * random.uniform(-2.1, 2.1, case.state)
    if "aloha" in case.robot:
        state = robots_numbers(state)
        state[[6, 13]] = random.uniform(0, 1, 2)
    else:  # a gripper that rests at the end of its range
        state[-1] = (mean - 2 * std)[-1]
    pictures = {f"observation.images.{key}": 100 * seed + place for place, key in enumerate(case.cameras)}
    return {"pictures": pictures, "state": state.tolist()}


def observation(case: Case, drawn: dict[str, Any], command: str) -> dict[str, object]:
    """Make an observation as openpi's examples do."""
    state, prompt = np.array(drawn["state"]), {"prompt": command}
    seen = {
        name: picture(drawn["pictures"][f"observation.images.{name}"], *size)
        for name, size in case.cameras.items()
    }
    if "aloha" in case.robot:
        return {"state": state, "images": {k: v.transpose(2, 0, 1) for k, v in seen.items()}} | prompt
    pictures = {f"observation/{key}": value for key, value in seen.items()}
    if "droid" in case.robot:
        parts = {"observation/joint_position": state[:7], "observation/gripper_position": state[7:]}
        return pictures | parts | prompt
    return pictures | {"observation/state": state} | prompt


def robots_numbers(values: np.ndarray) -> np.ndarray:
    """Return what openpi makes of an action for ALOHA."""
    return aloha_policy.AlohaOutputs(adapt_to_pi=True)({"actions": values[None]})["actions"][0]


def span(case: Case) -> list[float]:
    """Return how far the training data's actions reach, in the robot's numbers."""
    told = statistics(case)["actions"]
    low, high = (bound[None, : case.action] for bound in (told.q01, told.q99))
    if "aloha" in case.robot:
        low, high = robots_numbers(low[0])[None], robots_numbers(high[0])[None]
    return np.abs(high - low)[0].tolist()


def write(case: Case) -> None:
    """Make one policy's golden folder anew."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / case.name
        save(case, folder)
        recorded = {
            "made_with": {name: version(name) for name in ("transformers", "torch", "numpy")},
            "robot": case.robot,
            "sizes": {f"observation.images.{name}": size for name, size in case.cameras.items()},
            "range": span(case),
            "requests": answers(case, folder),
        }
        keep(folder, HERE / case.name, recorded)


if __name__ == "__main__":
    smaller()
    for case in CASES:
        if case.name in (sys.argv[1:] or [case.name]):
            write(case)
            print(f"{HERE / case.name} is made anew")

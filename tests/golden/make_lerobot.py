"""Golden truth of LeRobot: tiny policies of the real library, and what it answers.

`make golden` runs it in an environment of its own, which has LeRobot 0.4.4. For each policy it writes a
folder: the library's own files, except the weights, which are drawn (see drawn.py) and stand in weights.json
by key and shape; and requests.json, with the library's own actions in physical units.
"""

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from drawn import picture, weight
from kept import keep
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference

HERE = Path(__file__).parent
JOINTS = [
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
    "gripper.pos",
]
REQUESTS = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy to make: its folder's name, its class, its configuration, its cameras as (height, width)."""

    name: str
    policy: type
    config: Callable[..., object]
    cameras: dict[str, tuple[int, int]]
    # Places of the state's dimensions that never change in the training data.
    constant: tuple[int, ...] = ()


def act(**fields: object) -> ACTConfig:
    small = {"chunk_size": 5, "n_action_steps": 5, "dim_model": 32, "n_heads": 4, "dim_feedforward": 64}
    small |= {"n_encoder_layers": 2, "n_decoder_layers": 1, "latent_dim": 8}
    return ACTConfig(**small | {"pretrained_backbone_weights": None, "device": "cpu"} | fields)


def act_plain(**features: object) -> ACTConfig:
    return act(**features)


def act_min_max(**features: object) -> ACTConfig:
    modes = {"VISUAL": "IDENTITY", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
    return act(
        pre_norm=True,
        feedforward_activation="gelu",
        n_decoder_layers=2,
        use_vae=False,
        normalization_mapping={kind: NormalizationMode(mode) for kind, mode in modes.items()},
        **features,
    )


def diffusion(**fields: object) -> DiffusionConfig:
    small = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "spatial_softmax_num_keypoints": 8}
    small |= {"n_groups": 4, "kernel_size": 3, "horizon": 8, "n_action_steps": 6, "n_obs_steps": 2}
    return DiffusionConfig(**small | {"device": "cpu"} | fields)


def diffusion_ddim(**features: object) -> DiffusionConfig:
    return diffusion(
        noise_scheduler_type="DDIM",
        num_inference_steps=5,
        crop_shape=(57, 80),
        use_separate_rgb_encoder_per_camera=True,
        **features,
    )


def diffusion_ddpm(**features: object) -> DiffusionConfig:
    return diffusion(
        num_train_timesteps=12,
        beta_schedule="linear",
        beta_end=0.1,
        prediction_type="sample",
        resize_shape=(48, 40),
        use_group_norm=False,
        use_film_scale_modulation=False,
        **features,
    )


CASES = (
    Case(
        "act",
        ACTPolicy,
        act_plain,
        {"observation.images.front": (64, 96), "observation.images.wrist": (64, 96)},
    ),
    Case("act_min_max", ACTPolicy, act_min_max, {"observation.image": (72, 52)}, constant=(2,)),
    Case(
        "diffusion",
        DiffusionPolicy,
        diffusion_ddim,
        {"observation.images.front": (64, 96), "observation.images.wrist": (64, 96)},
    ),
    Case("diffusion_ddpm", DiffusionPolicy, diffusion_ddpm, {"observation.image": (72, 52)}, constant=(2,)),
)


def statistics(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Return what a dataset says of its features, in degrees and of RGB in [0, 1]."""
    random = np.random.RandomState(7)
    found = {}
    for key in ("observation.state", "action"):
        mean, std = random.uniform(-40, 40, len(JOINTS)), random.uniform(2, 30, len(JOINTS))
        if key == "observation.state":
            std[list(case.constant)] = 0
        found[key] = {"mean": mean, "std": std, "min": mean - 2 * std, "max": mean + 2.5 * std}
    for key in case.cameras:
        values = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "min": (0, 0, 0), "max": (1, 1, 1)}
        found[key] = {name: np.array(value, float).reshape(3, 1, 1) for name, value in values.items()}
    return {
        key: {name: value.astype(np.float32) for name, value in stats.items()} for key, stats in found.items()
    }


def save(case: Case, folder: Path) -> None:
    """Write the policy, its processors and its dataset's info as the library does."""
    width = (len(JOINTS),)
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, width)}
    inputs |= {key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key, size in case.cameras.items()}
    config = case.config(
        input_features=inputs, output_features={"action": PolicyFeature(FeatureType.ACTION, width)}
    )
    policy = case.policy(config)
    with torch.no_grad():
        for key, value in policy.state_dict().items():
            value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=statistics(case)):
        processor.save_pretrained(folder)
    features = {
        key: {"dtype": "float32", "shape": width, "names": JOINTS} for key in ("observation.state", "action")
    }
    dataset = folder.parent / f"{case.name}.dataset"
    LeRobotDatasetMetadata.create("golden/tiny", 30, features, root=dataset, use_videos=False)
    (folder / "meta").mkdir()
    shutil.copy(dataset / "meta" / "info.json", folder / "meta" / "info.json")


def answers(case: Case, folder: Path) -> list[dict[str, object]]:
    """Read the folder as a user of the library does, and compute requests."""
    policy = case.policy.from_pretrained(folder)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    noise = None
    if case.policy is DiffusionPolicy:
        model = policy.diffusion
        # What is compared is the library's own DDIM, whatever the policy was trained for.
        model.noise_scheduler = DDIMScheduler.from_config(model.noise_scheduler.config)
    found = []
    for seed in range(REQUESTS):
        steps = [request(case, seed, step) for step in range(policy.config.n_obs_steps)]
        policy.reset()
        with torch.inference_mode():
            observed = [before(observation(case, step)) for step in steps]
            if case.policy is DiffusionPolicy:
                shape = (policy.config.horizon, len(JOINTS))
                noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))[None]
                chunk = remembered(policy, observed, noise)
            else:
                chunk = policy.predict_action_chunk(observed[0])
        found.append({"seed": seed, "steps": steps, "actions": after(chunk)[0].tolist()})
    return found


def request(case: Case, seed: int, step: int) -> dict[str, object]:
    """Draw one observation: the seeds of its pictures, and the state."""
    told, random = statistics(case)["observation.state"], np.random.RandomState(100 * seed + step)
    state = (told["mean"] + told["std"] * random.uniform(-2, 2, len(JOINTS))).astype(np.float32)
    pictures = {key: 100 * seed + 10 * step + place for place, key in enumerate(case.cameras)}
    return {"pictures": pictures, "state": state.tolist()}


def observation(case: Case, drawn: dict[str, object]) -> dict[str, object]:
    """Make an observation as LeRobot's own control loop does."""
    seen = {key: picture(drawn["pictures"][key], *size) for key, size in case.cameras.items()}
    state = np.array(drawn["state"], np.float32)
    return prepare_observation_for_inference({**seen, "observation.state": state}, torch.device("cpu"))


def remembered(
    policy: DiffusionPolicy, observed: list[dict[str, torch.Tensor]], noise: torch.Tensor
) -> torch.Tensor:
    """Return a chunk [1, T, A] from observations of several steps, oldest first."""
    batch = {"observation.state": torch.stack([step["observation.state"] for step in observed], 1)}
    keys = policy.config.image_features
    batch["observation.images"] = torch.stack(
        [torch.stack([step[key] for key in keys], 1) for step in observed], 1
    )
    return policy.diffusion.generate_actions(batch, noise=noise)


def write(case: Case) -> None:
    """Make one policy's golden folder anew."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / case.name
        save(case, folder)
        action = statistics(case)["action"]
        recorded = {
            "made_with": {
                "lerobot": version("lerobot"),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "sizes": case.cameras,
            "range": (action["max"] - action["min"]).tolist(),
            "requests": answers(case, folder),
        }
        keep(folder, HERE / case.name, recorded)


if __name__ == "__main__":
    wanted = sys.argv[1:] or [case.name for case in CASES]
    for case in CASES:
        if case.name in wanted:
            write(case)
            print(f"{HERE / case.name} is made anew")

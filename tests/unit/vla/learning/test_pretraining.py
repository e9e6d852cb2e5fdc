"""Pre-training on pictures and their descriptions, and the comparison of policies with and without."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla import checkpoint
from vla.learning import comparison
from vla.learning.captions import Captioned, Described, same
from vla.learning.comparison import Comparison, Result, markdown
from vla.learning.pretraining import Pretraining, pretrain
from vla.models import Sizes, build, module_of
from vla.tabletop.collection import Collection, collect
from vla.tabletop.demonstrations import DatasetError, Demonstrations
from vla.tabletop.descriptions import LENGTH, WORDS, describe, spell
from vla.tabletop.texts import Scene
from vla.training.setup import describe as describe_policy
from vla.training.setup import model_for
from vla_runtime.errors import SpecError

BLOCKS = np.array([[0.0, -0.1, 0.02], [0.1, 0.1, 0.02], [-0.1, 0.0, 0.02], [0.05, 0.05, 0.02]])
SIZES = Sizes(cameras=1, image_size=32, context_length=77, vocabulary=49408, state=4, horizon=2, action=4)


def test_a_description_says_what_the_camera_shows():
    open_above_blue = np.array([-0.1, 0.01, 0.15, 1.0])
    said = describe(Scene(BLOCKS, open_above_blue))
    assert said == (
        "from left to right red blue yellow green, from front to back green yellow red blue, "
        "the hand is near blue"
    )
    holding = np.array([0.1, 0.1, 0.02, 0.6])
    assert describe(Scene(BLOCKS, holding)).endswith("back green yellow red blue, the hand is holding green")


def test_a_description_is_spelled_by_its_words_and_its_end():
    said = describe(Scene(BLOCKS, np.array([0.0, 0.0, 0.2, 1.0])))
    spelled = spell(said)
    assert len(spelled) == LENGTH
    assert " ".join(WORDS[index] for index in spelled[:-1]) == said.replace(",", "")
    assert WORDS[spelled[-1]] == ""


def test_pictures_of_one_description_share_it():
    ids = torch.tensor([[1, 2], [1, 3], [1, 2]])
    assert same(ids).tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining") / "data"
    collect(Collection(out=folder, episodes=6, horizon=2, image_size=32, varied=0, early=0, workers=1))
    return folder


@pytest.fixture(scope="module")
def config(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "clip"
    return Pretraining(
        data, out, preset="tiny", steps=60, batch=16, learning_rate=1e-2, validate_every=20, seed=2
    )


@pytest.fixture(scope="module")
def progress(config):
    return pretrain(config)


@pytest.mark.parametrize("architecture", ["clip", "vl_transformer"])
def test_the_contrast_of_features_that_are_all_alike_is_that_of_guessing(data, architecture):
    torch.manual_seed(0)
    policy: Any = build(architecture, asdict(module_of(architecture).Config.tiny()), SIZES)
    model = Captioned(policy, ("contrast",))
    settings = Pretraining(data, architecture=architecture, preset="tiny").run
    dataset = Demonstrations.load(data)
    batch = Described(dataset, describe_policy(settings, dataset), 0, 0.2, 0.5).train(0, 8, 1)
    with torch.no_grad():
        policy.vision_projection.weight.zero_()
        policy.vision_projection.bias.fill_(1.0)
        policy.text_projection.weight.zero_()
        policy.text_projection.bias.fill_(-1.0)
        terms = model.loss(batch)
    assert list(terms) == ["contrast"]
    assert terms["contrast"].item() == pytest.approx(math.log(8), abs=1e-5)


def test_towers_learn_what_is_said_of_pictures(config, progress):
    first, last = progress.points[0], progress.points[-1]
    assert last.loss < 0.7 * first.loss
    assert last.error[1] < 0.8 * math.log(len(WORDS))
    about = json.loads((config.out / checkpoint.PROVENANCE).read_text())
    assert (about["pretraining"], about["steps"]) == (["contrast", "caption"], 60)
    assert about["surprise"] == last.error[1]


def test_a_policy_goes_on_from_its_towers(config, progress):
    settings = config.run
    about = describe_policy(settings, Demonstrations.load(config.data))
    torch.manual_seed(config.seed)
    fresh = model_for(settings, about).state_dict()
    began = model_for(replace(settings, start=config.out), about).state_dict()
    learned = {name.split(".")[0] for name in fresh if not torch.equal(fresh[name], began[name])}
    assert learned == {"text", "vision", "text_projection", "vision_projection"}


def test_what_would_be_lost_or_has_no_towers_is_refused(config, progress):
    with pytest.raises(ValueError, match="holds a checkpoint already"):
        pretrain(config)
    blind = build("late_fusion", asdict(module_of("late_fusion").Config.tiny()), SIZES)
    with pytest.raises(SpecError, match="an architecture with CLIP's towers: clip or vl_transformer"):
        Captioned(blind, ("contrast",))


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    return Comparison(
        tmp_path_factory.mktemp("comparison") / "run",
        data,
        architecture="clip",
        preset="tiny",
        arms=("alone", "caption"),
        goals=("reach red", "reach blue"),
        seeds=(1,),
        budgets=(2,),
        unit="steps",
        pretraining_steps=2,
        pretraining_batch=8,
        batch=4,
        commands=2,
        episodes=0,
    )


def test_what_is_trained_elsewhere_is_judged_as_it_is(compared):
    assert comparison.run(compared) == []
    folders = [compared.folder(1, arm, budget) for arm in compared.arms for budget in compared.budgets]
    before = [(folder / checkpoint.WEIGHTS).read_bytes() for folder in folders]
    results = comparison.run(replace(compared, episodes=1))
    assert [(folder / checkpoint.WEIGHTS).read_bytes() for folder in folders] == before
    assert [(each.arm, each.budget, each.steps, each.episodes) for each in results] == [
        ("alone", 2, 2, 1),
        ("caption", 2, 2, 1),
    ]
    assert all(5 < each.error_mm < 40 for each in results)
    assert (compared.out / "comparison.png").is_file()
    start = load_file(compared.folder(1, "caption", "pretrained") / checkpoint.WEIGHTS)
    cloned = json.loads((folders[1] / checkpoint.CONFIG).read_text())
    assert cloned["training"]["start"].endswith("caption/pretrained")
    assert len(cloned["training"]["excluded_goals"]) == 10
    assert "action_head.mlp.0.weight" in start


def test_pictures_of_other_demonstrations_are_for_pre_training_alone(compared, tmp_path):
    elsewhere = replace(compared, out=tmp_path, pictures=tmp_path / "none")
    comparison.clone(elsewhere, 1, "alone", 2)
    with pytest.raises(DatasetError, match=r"none/dataset\.json is missing"):
        comparison.clone(elsewhere, 1, "caption", 2)


def test_the_table_pools_the_seeds():
    config = Comparison(out=None, arms=("alone",), budgets=(30,))  # pyright: ignore[reportArgumentType]
    results = [Result(seed, "alone", 30, 100 + seed, 2.5, 3 + seed, 10) for seed in (0, 1)]
    cells = [cell.strip() for cell in markdown(config, results).splitlines()[2].split("|")[1:-1]]
    assert cells == ["alone", "30", "100, 101", "2.50, 2.50", "35 [18, 57]", "3 of 10, 4 of 10"]


def test_a_comparison_without_its_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the arm taught needs a teacher"):
        Comparison(tmp_path)
    taught = Comparison(tmp_path, architecture="efficient", arms=("both",))
    with pytest.raises(ValueError, match="the arm both is for clip and vl_transformer, not efficient"):
        comparison.clone(taught, 0, "both", 10)

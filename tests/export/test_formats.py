"""Every format and precision: the same archive, the same answers, a clear refusal where one can't work."""

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from making import Exported, eager_actions, write_checkpoint
from sources import branching, grey, png
from test_export import LAYOUT, FrozenBranch, FrozenLoop, Sound
from torch import Tensor, nn

import vla.models
from archive.read import unpack
from export.batch import Batch, Layout
from export.errors import ExportError
from export.export import FILES, Options, archived, export
from export.flat import flattened
from export.lower import Lowered
from export.native import make
from export.package import package
from export.target import Target
from export.trace import trace
from export.verify import verify
from vla import checkpoint
from vla_runtime.actions import ActionChunk
from vla_runtime.errors import RequestError, SpecError
from vla_runtime.policy import Answer, Policy
from vla_runtime.spec import ContinuousSpace, DiscreteSpace, Extra, Format, PolicySpec, Precision, Safety

# The .pt2 takes tens of seconds to build: `make test` builds one, `make test-all` all.
ARCHIVES = (
    ("torchscript", "float32"),
    ("torchscript", "bfloat16"),
    ("pt2", "float32"),
    ("onnx", "float32"),
    pytest.param(("pt2", "bfloat16"), marks=pytest.mark.slow),
)


@pytest.fixture(scope="module", params=ARCHIVES, ids="-".join)
def archive(request, exported: Exported) -> Path:
    """A tiny checkpoint's archive, unpacked."""
    path = exported(*request.param)
    return unpack(path, path.with_name("unpacked"))


def chunk_of(answer: Answer | RequestError) -> ActionChunk:
    assert isinstance(answer, Answer), answer
    return answer.chunk


# Largest difference from the eager model in float32, normalised.
ALLOWED: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.05}


def test_archive_answers_as_the_eager_model(archive: Path, tiny_checkpoint: Path) -> None:
    """Alone and in batches of 1, 3 and 4, the sizes that nobody traced among them."""
    config, model = checkpoint.load(tiny_checkpoint)
    assert isinstance(config.action, ContinuousSpace)
    policy = Policy.load(archive)
    request = dict(policy.example_row(archive))
    commands = ["push the red block", "lift it", "reach the green cube", "go"]
    rows = [{**request, "command": command, "state": [0.1 * i, 0.5]} for i, command in enumerate(commands)]
    expected = np.stack([eager_actions(policy, model, row) for row in rows])

    for count in (1, 3, 4):
        answers = policy.infer(rows[:count])
        got = np.stack([answer.chunk.actions for answer in answers if isinstance(answer, Answer)])
        difference = np.abs(got - expected[:count]) / config.action.scale
        assert difference.max() <= ALLOWED[policy.spec.artifact.precision]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # the command matters


def test_archive_says_what_it_is_and_what_it_lost(archive: Path) -> None:
    spec = PolicySpec.load(archive)
    made: tuple[Format, Precision] = (spec.artifact.format, spec.artifact.precision)
    parity, loss = spec.provenance["parity"], spec.provenance["precision_loss"]

    assert archive.parent.name.startswith("_".join(made))
    assert spec.artifact.file == FILES[made[0]]
    assert (spec.artifact.platform is None) == (made[0] != "pt2")
    assert (parity["batch_sizes"], parity["tolerance"]) == ([1, 3, 4], ALLOWED[made[1]])
    assert list(loss) == ["delta_x [m]", "gripper [1]"]
    assert 0 <= loss["delta_x [m]"]["mean"] <= loss["delta_x [m]"]["largest"] <= 0.03 * 0.2
    if made[1] == "float32":
        assert parity["judged_by"] == "largest_difference"
        assert parity["largest_difference"] <= 1e-4
    else:
        assert parity["judged_by"] == "root_mean_square"
        assert 1e-5 < parity["root_mean_square"] <= 0.05  # it does round


def test_bfloat16_halves_the_weights(tmp_path: Path) -> None:
    target = Target(largest_batch=4)
    model = Wide().eval()
    sizes = dataclasses.replace(LAYOUT, vocabulary=5000)
    for name, module in (("full", model), ("half", Lowered(model))):
        trace(module, sizes, tmp_path / name, target)

    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size


class Wide(Sound):
    """A large table of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5000, 64)
        self.narrow = nn.Linear(64, 4)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.narrow(self.words(input_ids)), attention_mask.bool()


class Mixed(nn.Module):
    """Layers of every kind, and a float32 mask of its own making between them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(LAYOUT.vocabulary, 8)
        self.read = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.see = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.ReLU())
        self.fuse = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8 + LAYOUT.state, LAYOUT.horizon * LAYOUT.action)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        words = self.words(input_ids) * attention_mask.unsqueeze(-1).float()
        return self.norm(self.read(words)[0]), attention_mask.bool()

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        images, command, _, state, _ = inputs
        seen = self.see(images[:, 0]).flatten(2).transpose(1, 2)
        fused, weights = self.fuse(command @ self.mix, seen, seen)
        actions = self.head(torch.cat([fused.mean(1), state], -1)).unflatten(
            -1, (LAYOUT.horizon, LAYOUT.action)
        )
        return {"actions": actions, "looks": weights.sum(-1), "place": weights.mean(1).argmax(-1)}


def test_bfloat16_takes_layers_of_every_kind(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    target = Target(largest_batch=8, precision="bfloat16")

    outputs = trace(Lowered(model), LAYOUT, tmp_path / "policy.ts", target)
    artifact = torch.jit.load(str(tmp_path / "policy.ts"))
    parity = verify(model, artifact, LAYOUT, target, tolerance=0.5)

    assert outputs == ("actions", "looks", "place")
    assert 1e-4 < parity.typical["actions"] < 0.02
    assert 0 <= parity.largest["place"] == parity.typical["place"] <= 0.5  # a share of the indices
    batch = Batch.random(LAYOUT, 3, 5, "cpu")
    assert {value.dtype for value in batch.run(artifact).values()} == {torch.float32, torch.int64}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # untouched


def test_too_coarse_a_precision_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    target = Target(largest_batch=8, precision="bfloat16")
    trace(Lowered(model), LAYOUT, tmp_path / "policy.ts", target)
    artifact = torch.jit.load(str(tmp_path / "policy.ts"))

    with pytest.raises(
        ExportError,
        match=r"^the artifact's \w+ differs from the model's by .* \(root mean square\) in bfloat16; "
        r"at most 1e-05 is allowed: use float32, or allow more by --tolerance",
    ):
        verify(model, artifact, LAYOUT, target, tolerance=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (FrozenLoop, r"^FrozenLoop\.act can't be captured with a dynamic batch size: .*batch"),
        (FrozenBranch, r"^FrozenBranch\.act can't be captured with a dynamic batch size: .*data-dependent"),
    ],
)
def test_package_of_a_frozen_model_is_refused(tmp_path: Path, bad: type[Sound], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        package(bad().eval(), LAYOUT, tmp_path / "policy.pt2", Target(largest_batch=8, format="pt2"))


def test_package_without_a_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(ExportError, match=r"^a \.pt2 is compiled by no-such-compiler, which is not here: "):
        package(Sound().eval(), LAYOUT, tmp_path / "policy.pt2", Target(largest_batch=8, format="pt2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_package_for_an_absent_gpu_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^device is 'cuda', but this machine has no GPU"):
        export(Options(str(tiny_checkpoint), tmp_path / "vla.mar", format="pt2", device="cuda"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch": "1.0.0"}, r"^policy\.pt2 is compiled for cpu \(.*\) under torch 1\.0\.0, this is cpu \("),
        ({"capability": "VSX"}, r"^policy\.pt2 is compiled for cpu \(VSX\) under torch .*: export it here$"),
        ({"device": "cuda"}, r"^policy\.pt2 is compiled for cuda \("),
    ],
)
def test_package_of_another_machine_is_refused(
    tiny_folder: Path, tmp_path: Path, change: dict, message: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copy"))
    described = msgspec.to_builtins(PolicySpec.load(folder))
    here = {"device": "cpu", "torch": "2.13.0", "capability": "AVX2"}
    described["artifact"] |= {"format": "pt2", "file": "policy.pt2", "platform": here | change}
    msgspec.convert(described, PolicySpec, strict=False).save(folder)

    with pytest.raises(SpecError, match=message):
        Policy.load(folder)


def test_portable_format_with_a_platform_is_refused(tiny_folder: Path) -> None:
    described = msgspec.to_builtins(PolicySpec.load(tiny_folder))
    described["artifact"]["format"] = "pt2"

    with pytest.raises(
        msgspec.ValidationError, match=r"^format 'pt2' and platform None contradict each other"
    ):
        msgspec.convert(described, PolicySpec, strict=False)


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
    skills: int = 2


class Planner(vla.models.PolicyModel[PlannerConfig]):
    """Chooses symbolic actions, by chance where it is not sure, and says which skill it is at."""

    stochastic = True
    extras = {"skill": Extra(labels=("pick", "place")), "score": Extra()}  # noqa: RUF012

    def __init__(self, config: PlannerConfig, sizes: vla.models.Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        self.words = nn.Embedding(sizes.vocabulary, 4)
        self.head = nn.Linear(4 + 3 + sizes.state, sizes.horizon * sizes.action)
        self.skill = nn.Linear(4, config.skills)

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.words(input_ids), attention_mask.bool()

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        said = (command * command_mask.unsqueeze(-1)).sum(1)
        logits = self.head(torch.cat([images.mean(dim=(1, 3, 4)), said, state], -1))
        skills = torch.softmax(self.skill(said), -1)
        score, skill = skills.max(-1)
        logits = logits.unflatten(-1, (self.sizes.horizon, self.sizes.action)) + noise
        return {"logits": logits, "skill": skill, "score": score}


def test_discrete_policy_from_checkpoint_to_answer(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(Config=PlannerConfig, Model=Planner)
    monkeypatch.setattr(vla.models, "module_of", lambda _: module)
    config = msgspec.structs.replace(
        checkpoint.load_part(tiny_checkpoint / checkpoint.CONFIG, checkpoint.Config),
        architecture="planner",
        model={"skills": 2},
        action=DiscreteSpace(vocabulary=("navigate_to", "pick_up", "stop"), horizon=2, control_hz=1.0),
        safety=Safety(mode="hold", hold_action="stop", min_confidence=0.01),
    )
    frame = checkpoint.Frame(
        np.zeros((1, 96, 96, 3), np.uint8), "pick it up", np.array([0.1, 1.0], np.float32)
    )
    model = Planner(PlannerConfig(), config.sizes())
    checkpoint.save(tmp_path / "planner", config, model, frame, {}, half=False)

    spec = export(Options(str(tmp_path / "planner"), tmp_path / "vla.mar", buckets=(1, 2)))

    assert spec.artifact.outputs == ("logits", "score", "skill")
    assert spec.noise == (2, 3)
    assert len(spec.example.names) == 2
    assert list(spec.provenance["precision_loss"]) == [
        "navigate_to [probability]",
        "pick_up [probability]",
        "stop [probability]",
    ]
    policy = Policy.load(unpack(tmp_path / "vla.mar", tmp_path / "unpacked"))
    row = dict(policy.example_row(tmp_path / "unpacked"))
    chunks = [chunk_of(answer) for answer in policy.infer([row, row, {**row, "seed": 1}])]
    same, again, other = (np.asarray(chunk.probabilities) for chunk in chunks)
    np.testing.assert_allclose(same, spec.example.actions, atol=1e-6)
    np.testing.assert_allclose(same, again, atol=1e-6)
    assert np.abs(same - other).max() > 1e-3
    assert chunks[0].chosen == spec.example.names
    extras = chunks[0].extras
    assert extras
    assert extras["skill"]["name"] in ("pick", "place")
    assert 0.5 <= extras["score"] <= 1


Traced = Callable[[str], tuple[Path, Layout]]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """`traced(architecture)` returns the file of its trace, made once, and what it takes and gives."""

    @cache
    def made(architecture: str) -> tuple[Path, Layout]:
        folder = tmp_path_factory.mktemp(architecture)
        flat, layout = flattened(make(write_checkpoint(folder / "checkpoint", architecture)))
        trace(flat, layout, folder / "policy.ts", Target(largest_batch=4))
        return folder / "policy.ts", layout

    return made


@pytest.mark.parametrize("architecture", ["realtime", "clip"])
def test_a_trace_follows_its_input_to_any_device(architecture: str, traced: Traced) -> None:
    """An LSTM's first state and a causal mask are made where the command lies, not where it was traced."""
    file, _ = traced(architecture)

    loaded = torch.jit.load(str(file))

    for name in ("encode_command", "act"):
        graph = getattr(loaded, name).inlined_graph
        constants = graph.findAllNodes("prim::Constant")
        assert not [c for c in constants if c.output().type().kind() == "DeviceObjType"]


def test_a_recurrent_policy_runs_on_another_device(traced: Traced) -> None:
    file, layout = traced("realtime")

    elsewhere = torch.jit.load(str(file), map_location="meta")
    outputs = Batch.random(layout, 3, 0, "cpu").to("meta").run(elsewhere)

    assert {value.device.type for value in outputs.values()} == {"meta"}


def test_an_eager_module_is_compiled_by_its_worker(tmp_path: Path) -> None:
    source = branching(tmp_path)
    options = Options("a test", tmp_path / "plain.mar", buckets=(1, 2, 4), format="eager")
    plain = archived(source, options)
    compiled = archived(source, dataclasses.replace(options, output=tmp_path / "compiled.mar", compile=True))
    assert (plain.artifact.compiled, compiled.artifact.compiled) == (False, True)

    policies = [
        Policy.load(unpack(tmp_path / f"{name}.mar", tmp_path / name)) for name in ("plain", "compiled")
    ]
    rows = [{"image": png(grey(value))} for value in (20, 51, 90)]
    one, other = ([chunk_of(answer).actions for answer in policy.infer(rows)] for policy in policies)
    np.testing.assert_allclose(one, other, atol=1e-6)

    with pytest.raises(ExportError, match="--compile is for format 'eager' alone, got 'torchscript'"):
        archived(source, dataclasses.replace(options, format="torchscript", compile=True))


def test_a_compiled_archive_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options("a test", tmp_path / "it.mar", buckets=(1, 2), format="eager", compile=True)
    archived(branching(tmp_path), options)
    folder = unpack(options.output, tmp_path / "it")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SpecError, match="compiled by no-such-compiler, which is not here"):
        Policy.load(folder)


def test_an_eager_checkpoint_answers_as_its_torchscript(
    tiny_checkpoint: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    options = Options(str(tiny_checkpoint), tmp_path / "eager.mar", buckets=(1, 4), format="eager")
    assert export(options).artifact.format == "eager"
    policies = [Policy.load(folder) for folder in (tiny_folder, unpack(options.output, tmp_path / "eager"))]
    assert policies[0].spec.artifact.format == "torchscript"

    row = dict(policies[0].example_row(tiny_folder))
    one, other = (policy.infer([row, row | {"seed": 1}]) for policy in policies)
    for ours, theirs in zip(one, other, strict=True):
        assert isinstance(ours, Answer)
        assert isinstance(theirs, Answer)
        np.testing.assert_allclose(ours.chunk.actions, theirs.chunk.actions, atol=1e-6)


@pytest.mark.parametrize("format_", ["torchscript", "eager"])
def test_a_policy_that_plans_on_is_exported(tmp_path: Path, format_: Format) -> None:
    source = write_checkpoint(tmp_path / "flow", "flow", max_delay=2)
    options = Options(str(source), tmp_path / "flow.mar", buckets=(1, 4), format=format_)
    assert export(options).max_delay == 2
    policy = Policy.load(unpack(options.output, tmp_path / "unpacked"))
    policy.warm_up()
    row = dict(policy.example_row(tmp_path / "unpacked"))
    rest = [[0.01, 0.5], [0.02, -0.5], [-0.01, 0.25]]

    plain, delayed, beside = map(chunk_of, policy.infer([row, row | {"previous": rest, "delay": 2}, row]))

    assert (plain.delay, delayed.delay) == (0, 2)
    np.testing.assert_array_equal(delayed.actions[:2], np.array(rest[:2], np.float32))
    assert np.abs(delayed.actions[2:] - plain.actions[2:]).max() > 1e-4
    np.testing.assert_array_equal(plain.actions, beside.actions)
    _, model = checkpoint.load(source)
    np.testing.assert_allclose(plain.actions, eager_actions(policy, model, row), atol=1e-5)

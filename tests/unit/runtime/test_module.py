"""A module of the archive's own code: built from it, filled from its weights, asked as the spec says."""

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_runtime.errors import SpecError
from vla_runtime.module import load_module, load_weights, platform_of
from vla_runtime.spec import ArtifactSpec, Platform

SOURCE = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))

    def encode_command(self, input_ids, attention_mask):
        return {"mask": attention_mask, "words": input_ids * self.scale}

    def act(self, images, command, state, noise, *prefix):
        seen = images["front"].flatten(1).sum(1) + 10 * images["wrist"].flatten(1).sum(1)
        parts = [seen[:, None], command["words"], state, noise, *prefix]
        return {"actions": torch.cat([part.flatten(1).float() for part in parts], 1)}

def build(width):
    if width < 1:
        raise ValueError("no width")
    return Model(width)
"""
SCALE = torch.tensor([2.0, 3.0])


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An archive's folder; its package has another name in every test, as Python keeps what it imported."""
    (tmp_path / f"{request.node.name.partition('[')[0]}_code.py").write_text(SOURCE)
    save_file({"scale": SCALE}, tmp_path / "policy.safetensors")
    return tmp_path


def artifact(folder: Path, **changed: object) -> ArtifactSpec:
    (source,) = folder.glob("*_code.py")
    inputs = ("image.front", "image.wrist", "command.words", "command.mask", "state", "noise")
    fields: dict[str, object] = {
        "file": "policy.safetensors",
        "format": "eager",
        "factory": f"{source.stem}:build",
        "arguments": {"width": 2},
        "buckets": (1,),
        "outputs": ("actions",),
        "inputs": inputs,
        "command": ("words", "mask"),
    }
    return ArtifactSpec(**(fields | changed))  # pyright: ignore[reportArgumentType]


FRONT, WRIST = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1) * 2
IDS, MASK = torch.tensor([[5, 7]]), torch.ones(1, 2)
STATE, NOISE = torch.tensor([[0.25]]), torch.tensor([[0.75]])


def test_what_the_spec_names_is_handed_on_by_its_name(folder: Path) -> None:
    module = load_module(folder, artifact(folder), "cpu")

    words, mask = module.encode_command(IDS, MASK)
    actions = module.act(FRONT, WRIST, words, mask, STATE, NOISE)["actions"]

    assert mask is MASK
    assert words.tolist() == [[10, 21]]
    assert actions.tolist() == [[63, 10, 21, 0.25, 0.75]]
    assert not actions.requires_grad


def test_what_the_spec_leaves_out_is_empty(folder: Path) -> None:
    inputs = ("image.front", "image.wrist", "command.words", "command.mask")
    module = load_module(folder, artifact(folder, inputs=inputs), "cpu")

    assert module.act(FRONT, WRIST, IDS * SCALE, MASK)["actions"].tolist() == [[63, 10, 21]]


def test_a_prefix_and_its_length_follow(folder: Path) -> None:
    spec = artifact(folder)
    module = load_module(folder, artifact(folder, inputs=(*spec.inputs, "prefix", "delay")), "cpu")

    prefix, delay = torch.tensor([[[4.0, 5.0]]]), torch.tensor([1])
    actions = module.act(FRONT, WRIST, IDS * SCALE, MASK, STATE, NOISE, prefix, delay[:, None])["actions"]

    assert actions.tolist() == [[63, 10, 21, 0.25, 0.75, 4, 5, 1]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arguments": {"width": 0}}, r"_code:build fails: no width$"),
        ({"arguments": {"width": 3}}, r"policy\.safetensors: scale has shape \[2\], the module's has \[3\]$"),
        (
            {"factory": "nothing_here:build"},
            r"^factory 'nothing_here:build' can't be imported from the archive: ",
        ),
        ({"factory": "json:build"}, r"^factory 'json:build' can't be imported from the archive: "),
        ({"file": "none.safetensors"}, r"none\.safetensors can't be loaded: it is missing$"),
    ],
)
def test_modules_that_cannot_be_built_are_refused(folder: Path, changed: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_module(folder, artifact(folder, **changed), "cpu")


def test_compiling_needs_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(
        SpecError, match=r"the archive is to be compiled by no-such-compiler, which is not here"
    ):
        load_module(folder, artifact(folder, compiled=True), "cpu")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 3)
        self.two = nn.Linear(2, 3)
        self.two.weight = self.one.weight


def saved(folder: Path, **tensors: Tensor) -> Path:
    save_file({name.replace("_", "."): tensor for name, tensor in tensors.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def test_tied_weights_are_kept_once(tmp_path: Path) -> None:
    model = Tied()
    weight, bias = torch.arange(6.0).reshape(3, 2), torch.arange(3.0)

    load_weights(model, saved(tmp_path, one_weight=weight, one_bias=bias, two_bias=bias + 5))

    assert torch.equal(model.two.weight, weight)
    assert torch.equal(model.one.bias, bias)
    assert torch.equal(model.two.bias, bias + 5)


def test_weights_that_lack_or_add_something_are_refused(tmp_path: Path) -> None:
    bias = torch.zeros(3)
    with pytest.raises(
        SpecError, match=r"^w\.safetensors lacks weights of the module: one\.weight, two\.weight$"
    ):
        load_weights(Tied(), saved(tmp_path, one_bias=bias, two_bias=bias.clone()))
    more = {f"x{index}": bias.clone() for index in range(6)}
    with pytest.raises(
        SpecError, match=r"^w\.safetensors has weights that the module lacks: x0, x1, x2, x3, x4$"
    ):
        load_weights(Tied(), saved(tmp_path, **more))
    with pytest.raises(SpecError, match=r"^none can't be loaded: it is missing$"):
        load_weights(Tied(), tmp_path / "none")


def test_the_archives_own_code_comes_before_what_is_installed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own,) = folder.glob("*_code.py")
    other = tmp_path_factory.mktemp("installed")
    (other / own.name).write_text("def build(width):\n    raise ValueError('not the archive')\n")
    monkeypatch.syspath_prepend(str(other))

    assert load_module(folder, artifact(folder)).act(FRONT, WRIST, IDS * SCALE, MASK, STATE, NOISE)


def test_two_archives_may_call_their_packages_alike(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A package that the first has and the second lacks, or has otherwise, is each one's own."""
    other = tmp_path_factory.mktemp("other")
    save_file({"scale": SCALE}, other / "policy.safetensors")
    (own,) = folder.glob("*_code.py")
    changed = SOURCE.replace('return {"actions"', 'return {"other": state, "actions"')
    (other / own.name).write_text(changed)
    asked = FRONT, WRIST, IDS * SCALE, MASK, STATE, NOISE
    first = load_module(folder, artifact(folder))
    second = load_module(other, artifact(other))
    assert [sorted(module.act(*asked)) for module in (first, second)] == [["actions"], ["actions", "other"]]
    assert sorted(load_module(folder, artifact(folder)).act(*asked)) == ["actions"]


def test_what_was_imported_from_elsewhere_stays(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a checkout, whose own package an eager archive has a part of."""
    (own,) = folder.glob("*_code.py")
    installed, other = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("other")
    shutil.copy(own, installed)
    save_file({"scale": SCALE}, other / "policy.safetensors")
    shutil.copy(own, other)
    monkeypatch.syspath_prepend(str(installed))
    known = importlib.import_module(own.stem)
    for place in (folder, other):
        load_module(place, artifact(place))
        assert sys.modules[own.stem] is known


def test_a_module_is_compiled_once_for_all_batch_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def compiled(act: Callable[..., object], **options: object) -> Callable[..., object]:
        asked.append(options)
        return act

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setenv("CXX", "sh")  # any program that is there
    module = load_module(folder, artifact(folder, compiled=True))

    assert asked == [{"dynamic": True}]
    assert module.act(FRONT, WRIST, IDS * SCALE, MASK, STATE, NOISE)["actions"].shape == (1, 5)


def test_a_package_runs_on_the_platform_that_it_was_compiled_for() -> None:
    release = torch.__version__.split("+")[0]
    capability = torch.backends.cpu.get_cpu_capability()

    assert platform_of("cpu") == Platform(device="cpu", torch=release, capability=capability)


def test_a_gpus_platform_is_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"cuda": (9, 0), "cuda:1": (8, 6)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.get)
    release = torch.__version__.split("+")[0]

    assert platform_of("cuda") == Platform(device="cuda", torch=release, capability="sm_90")
    assert platform_of("cuda:1") == Platform(device="cuda", torch=release, capability="sm_86")


def package(platform: Platform, command: tuple[str, ...] = ("words",)) -> ArtifactSpec:
    return ArtifactSpec(
        file="policy.pt2",
        format="pt2",
        platform=platform,
        command=command,
        inputs=("image.front",),
        buckets=(1,),
        outputs=("actions",),
    )


def test_a_package_of_another_machine_is_refused(tmp_path: Path) -> None:
    other = Platform(device="cpu", torch="1.0.0", capability="none")
    message = (
        r"^policy\.pt2 is compiled for cpu \(none\) under torch 1\.0\.0, this is cpu \(\w+\) under torch "
    )
    with pytest.raises(SpecError, match=message):
        load_module(tmp_path, package(other))


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^policy\.pt2 can't be loaded: it is missing$"):
        load_module(tmp_path, package(platform_of("cpu")))


@pytest.mark.parametrize("command", [("words",), ()])
def test_a_package_gets_memory_in_the_order_that_it_was_compiled_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    from torch._inductor.package import package as inductor  # noqa: PLC0415

    asked: list[tuple[str, dict[str, object]]] = []

    def loaded(path: str, name: str, **options: object) -> Callable[..., str]:
        assert path == str(tmp_path / "policy.pt2")
        asked.append((name, options))

        def method(*inputs: Tensor) -> str:
            assert all(value.is_contiguous() for value in inputs)
            return f"{name} of {inputs[0].tolist()}"

        return method

    monkeypatch.setattr(inductor, "load_package", loaded)
    (tmp_path / "policy.pt2").write_bytes(b"")
    module: Any = load_module(tmp_path, package(platform_of("cpu"), command))
    turned = torch.arange(4).reshape(2, 2).T

    assert not turned.is_contiguous()
    assert module.act(turned, turned) == "act of [[0, 2], [1, 3]]"
    if command:
        assert module.encode_command(turned, turned) == "encode_command of [[0, 2], [1, 3]]"
    assert asked == [(name, {}) for name in (("encode_command", "act") if command else ("act",))]


def test_the_first_gpu_is_meant_where_none_is_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.package import package as inductor  # noqa: PLC0415

    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(inductor, "load_package", lambda *_, **options: asked.append(options))
    (tmp_path / "policy.pt2").write_bytes(b"")
    load_module(tmp_path, package(platform_of("cuda"), ()), "cuda")

    assert asked == [{"run_single_threaded": True, "device_index": 0}]


@pytest.mark.parametrize("data", [b"", b"no archive"])
def test_a_damaged_module_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "policy.ts").write_bytes(data)
    made = ArtifactSpec(file="policy.ts", command=(), inputs=(), buckets=(1,), outputs=("actions",))
    with pytest.raises(SpecError, match=r"^policy\.ts can't be loaded: [^\n]+$"):
        load_module(tmp_path, made)

"""The exported module of an archive, one loader a format: two methods, wherever they were compiled.

torchscript  one file that runs on any device, on any machine that this version of torch runs on
pt2          an AOTInductor package: machine code for one device, one version of torch, one kind of processor
eager        a Python package that builds the module, and its weights as safetensors: for what no tracer takes
onnx         a file a method that ONNX Runtime computes, by the providers that it has for the device
"""

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vla_runtime.errors import SpecError
from vla_runtime.spec import ArtifactSpec, Platform

# Packages of archives, and the folder that each was imported from last.
_imported: dict[str, Path] = {}


class Module(Protocol):
    """What every format offers; the spec's `artifact` names what goes in and comes out, in order."""

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Encode commands int64 [N, L], once for each that is new: tensors [N, ...]."""
        ...

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Compute one batch: tensors [B, ...] to tensors [B, ...] by name."""
        ...


def load_module(folder: Path, artifact: ArtifactSpec, device: str = "cpu") -> Module:
    """Load the module of an unpacked archive.

    Raises:
        SpecError: the file is missing or damaged, or was compiled for another machine.
    """
    path = folder / artifact.file
    loaders = {"torchscript": _torchscript, "pt2": _Package, "eager": _Eager, "onnx": _Onnx}
    try:
        return loaders[artifact.format](path, artifact, device)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{path.name} can't be loaded: {str(error).splitlines()[0]}") from error


def methods_of(artifact: ArtifactSpec) -> tuple[str, ...]:
    """Return the methods that an artifact has: a policy without a command encodes none."""
    return ("encode_command", "act") if artifact.command else ("act",)


def platform_of(device: str) -> Platform:
    """Return what a package that is compiled for this machine's device depends on."""
    kind = torch.device(device).type
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return Platform(device="cuda", torch=_release(), capability=f"sm_{major}{minor}")
    return Platform(device="cpu", torch=_release(), capability=torch.backends.cpu.get_cpu_capability())


def _torchscript(path: Path, _artifact: ArtifactSpec, device: str) -> Module:
    return torch.jit.load(str(path), map_location=device).eval()


class _Package:
    """Both methods of an AOTInductor package."""

    def __init__(self, path: Path, artifact: ArtifactSpec, device: str) -> None:
        # Only this format needs the compiler's side of torch, which takes seconds to import.
        from torch._inductor.package.package import load_package  # noqa: PLC0415

        here = platform_of(device)
        if artifact.platform != here:
            raise SpecError(
                f"{path.name} is compiled for {artifact.platform}, this is {here}: export it here"
            )
        if not path.is_file():
            raise SpecError(f"{path.name} can't be loaded: it is missing")
        # One thread runs it, and without the locks that more would need it can be captured as a CUDA graph.
        options = {"run_single_threaded": True, "device_index": torch.device(device).index or 0}
        options = options if here.device == "cuda" else {}
        methods = {name: load_package(str(path), name, **options) for name in methods_of(artifact)}
        self.act = _contiguous(methods["act"])
        self.encode_command = _contiguous(methods.get("encode_command", methods["act"]))


class _Eager:
    """A module that the archive's own Python package builds."""

    def __init__(self, path: Path, artifact: ArtifactSpec, device: str) -> None:
        self._artifact = artifact
        self._cameras = [name.removeprefix("image.") for name in artifact.inputs if name.startswith("image.")]
        build = _function(str(artifact.factory), path.parent)
        try:
            model = build(**artifact.arguments)
        except Exception as error:
            raise SpecError(f"{artifact.factory} fails: {error}") from error
        load_weights(model, path)
        self._model: Any = model.to(device).eval().requires_grad_(requires_grad=False)
        self._act = _compiled(self._model.act, device) if artifact.compiled else self._model.act

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        encoded = self._model.encode_command(input_ids, attention_mask)
        return tuple(encoded[name] for name in self._artifact.command)

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        given = dict(zip(self._artifact.inputs, inputs, strict=True))
        images = {camera: given[f"image.{camera}"] for camera in self._cameras}
        command = {name: given[f"command.{name}"] for name in self._artifact.command}
        empty = inputs[0].flatten(1)[:, :0]  # [B, 0]
        prefix = [given[name] for name in ("prefix", "delay") if name in given]
        return self._act(images, command, given.get("state", empty), given.get("noise", empty), *prefix)


class _Onnx:
    """Both methods as ONNX Runtime computes them; tensors pass through the host's memory."""

    def __init__(self, path: Path, artifact: ArtifactSpec, device: str) -> None:
        try:
            # Only this format needs it, and it is no part of what every server installs.
            runtime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise SpecError(
                f"{path.name} is computed by ONNX Runtime, which is not installed here: pip install "
                "onnxruntime, or onnxruntime-gpu where there is a GPU"
            ) from error
        self._artifact, self._device = artifact, device
        providers = _providers(runtime.get_available_providers(), device, path.name)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        # Threads that wait for work leave the processor to the front end and the pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._sessions: dict[str, Any] = {}
        for name in methods_of(artifact):
            file = onnx_file(path, name)
            if not file.is_file():
                raise SpecError(f"{file.name} can't be loaded: it is missing")
            try:
                self._sessions[name] = runtime.InferenceSession(str(file), options, providers=providers)
            except Exception as error:  # of classes of its own
                raise SpecError(f"{file.name} can't be loaded: {str(error).splitlines()[0]}") from error

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        found = self._run("encode_command", {"ids": input_ids, "mask": attention_mask})
        return tuple(found[name] for name in self._artifact.command)

    def act(self, *inputs: Tensor) -> dict[str, Tensor]:
        return self._run("act", dict(zip(self._artifact.inputs, inputs, strict=True)))

    def _run(self, method: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
        session = self._sessions[method]
        read = {value.name for value in session.get_inputs()}
        feed = {name: value.cpu().contiguous().numpy() for name, value in given.items() if name in read}
        names = [value.name for value in session.get_outputs()]
        try:
            outputs = session.run(names, feed)
        except Exception as error:  # of classes of its own
            raise RuntimeError(
                f"ONNX Runtime can't compute {method}: {str(error).splitlines()[0]}"
            ) from error
        values = (torch.from_numpy(output).to(self._device) for output in outputs)
        return dict(zip(names, values, strict=True))


def onnx_file(path: Path, method: str) -> Path:
    """Return the file of one method beside that of `act`, which the spec names."""
    return path if method == "act" else path.with_suffix(f".{method}.onnx")


def _providers(available: Sequence[str], device: str, file: str) -> list[Any]:
    """Return what computes an ONNX file on a device, in the order of preference; the rest goes to the CPU.

    TensorRT builds its engines for minutes when batches of a new size come: it is taken only where
    VLA_TENSORRT is 1.
    """
    place = torch.device(device)
    if place.type == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise SpecError(f"{file} can't be computed on {device}: ONNX Runtime here has {', '.join(available)}")
    index = {"device_id": str(place.index or 0)}
    found: list[Any] = [("CUDAExecutionProvider", index), "CPUExecutionProvider"]
    if os.environ.get("VLA_TENSORRT") == "1" and "TensorrtExecutionProvider" in available:
        found.insert(0, ("TensorrtExecutionProvider", index))
    return found


def _compiled(act: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Return a method that torch compiles at its first batches, for any batch size."""
    compiler = os.environ.get("CXX", "g++")
    if device == "cpu" and shutil.which(compiler) is None:
        raise SpecError(f"the archive is to be compiled by {compiler}, which is not here: install it")
    return torch.compile(act, dynamic=True)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file, one tensor in memory at a time.

    Raises:
        SpecError: the file is missing or damaged, or its names or shapes are not the module's.
    """
    if not path.is_file():
        raise SpecError(f"{path.name} can't be loaded: it is missing")
    state = model.state_dict()
    filled: set[int] = set()
    with safe_open(str(path), "pt") as weights:
        names = set(weights.keys())
    if unknown := sorted(names - set(state)):
        raise SpecError(f"{path.name} has weights that the module lacks: {', '.join(unknown[:5])}")
    for name in sorted(names):
        # Opened anew for each, which lets go of the pages of the one before.
        with torch.no_grad(), safe_open(str(path), "pt") as weights:
            value = weights.get_tensor(name)
            if value.shape != state[name].shape:
                raise SpecError(
                    f"{path.name}: {name} has shape {list(value.shape)}, the module's has "
                    f"{list(state[name].shape)}"
                )
            state[name].copy_(value)
            filled.add(state[name].data_ptr())
    # Tied weights are kept once.
    missing = sorted(n for n, v in state.items() if n not in names and v.data_ptr() not in filled)
    if missing:
        raise SpecError(f"{path.name} lacks weights of the module: {', '.join(missing[:5])}")


def _function(name: str, folder: Path) -> Callable[..., nn.Module]:
    """Import `package.module:function` from the archive's folder, whatever another archive calls its own."""
    module, _, function = name.partition(":")
    package = module.partition(".")[0]
    before = _imported.get(package, folder)
    if before != folder:
        # What the other archive has built keeps the code that it was built of.
        for known in [known for known in sys.modules if known.partition(".")[0] == package]:
            if before in Path(getattr(sys.modules[known], "__file__", None) or "").parents:
                del sys.modules[known]
    _imported[package] = folder
    sys.path[:] = [str(folder), *(place for place in sys.path if place != str(folder))]
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"factory {name!r} can't be imported from the archive: {error}") from error
    return found


def _contiguous(method: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a compiled method: it reads memory in the order that it was compiled for, unchecked."""
    return lambda *inputs: method(*(value.contiguous() for value in inputs))


def _release() -> str:
    """Return torch's version without its build: `2.13.0` of `2.13.0+cpu`."""
    return str(torch.__version__).partition("+")[0]

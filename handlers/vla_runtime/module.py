"""The exported module of an archive, one loader a format: two methods, wherever they were compiled.

torchscript  one file that runs on any device, on any machine that this version of torch runs on
pt2          an AOTInductor package: machine code for one device, one version of torch, one kind of processor
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vla_runtime.errors import SpecError
from vla_runtime.spec import Artifact, Platform

METHODS = ("encode_command", "act")


class Module(Protocol):
    """What every format offers; `vla.models` states shapes and meaning."""

    def encode_command(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode commands: once for each that is new."""
        ...

    def act(
        self, images: Tensor, command: Tensor, command_mask: Tensor, state: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Compute one batch."""
        ...


def load_module(folder: Path, artifact: Artifact, device: str = "cpu") -> Module:
    """Load the module of an unpacked archive.

    Raises:
        SpecError: the file is missing or damaged, or was compiled for another machine.
    """
    path = folder / artifact.file
    try:
        return (
            _torchscript(path, device)
            if artifact.format == "torchscript"
            else _Package(path, artifact, device)
        )
    except (RuntimeError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{path.name} can't be loaded: {str(error).splitlines()[0]}") from error


def platform_of(device: str) -> Platform:
    """Return what a package that is compiled for this machine's device depends on."""
    kind = torch.device(device).type
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return Platform(device="cuda", torch=_release(), capability=f"sm_{major}{minor}")
    return Platform(device="cpu", torch=_release(), capability=torch.backends.cpu.get_cpu_capability())


def _torchscript(path: Path, device: str) -> Module:
    return torch.jit.load(str(path), map_location=device).eval()


class _Package:
    """Both methods of an AOTInductor package."""

    def __init__(self, path: Path, artifact: Artifact, device: str) -> None:
        # Only this format needs the compiler's side of torch, which takes seconds to import.
        from torch._inductor.package.package import load_package  # noqa: PLC0415

        here = platform_of(device)
        if artifact.platform != here:
            raise SpecError(
                f"{path.name} is compiled for {artifact.platform}, this is {here}: export it here"
            )
        if not path.is_file():
            raise SpecError(f"{path.name} can't be loaded: it is missing")
        index = torch.device(device).index if here.device == "cuda" else None
        self.encode_command, self.act = (
            _contiguous(load_package(str(path), method, device_index=-1 if index is None else index))
            for method in METHODS
        )


def _contiguous(method: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a compiled method: it reads memory in the order that it was compiled for, unchecked."""
    return lambda *inputs: method(*(value.contiguous() for value in inputs))


def _release() -> str:
    """Return torch's version without its build: `2.13.0` of `2.13.0+cpu`."""
    return str(torch.__version__).partition("+")[0]

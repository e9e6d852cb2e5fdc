"""What the figures were measured on."""

import subprocess
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from loadtest import host
from server.java import JavaNotFound, find_java, java_version
from vla.provenance import commit

Machine = dict[str, str | int | float | None]


def fingerprint(device: str | None = None) -> Machine:
    """Return what decides how fast this host serves, and how busy it is now; None for what it lacks.

    `device` is `cpu` where an accelerator that is there is not to be used.
    """
    about: Machine = {
        **host.describe(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": None,
        "java": _java(),
        **{name: _version(name) for name in ("torch", "torchserve", "pillow", "numpy")},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    return about | (_accelerator() if torch.cuda.is_available() and device != "cpu" else {})


def described(machine: Machine) -> str:
    """Return a machine as one line."""
    return ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)


def _accelerator() -> Machine:
    properties = torch.cuda.get_device_properties(0)
    return {
        "accelerator": properties.name,
        "accelerators": torch.cuda.device_count(),
        "accelerator_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"sm_{properties.major}{properties.minor}",
        "cuda": torch.version.cuda,
        "mig": _nvidia("mig.mode.current"),
        "driver": _nvidia("driver_version"),
    }


def _nvidia(query: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _java() -> int | None:
    try:
        return java_version(find_java())
    except JavaNotFound:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

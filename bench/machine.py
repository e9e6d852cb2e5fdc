"""What the figures were measured on."""

from importlib.metadata import version
from typing import Any

import torch

from loadtest import host
from server.java import find_java, java_version
from vla.provenance import commit


def fingerprint() -> dict[str, Any]:
    """Return what decides how fast this host serves, and how busy it is now."""
    return {
        **host.describe(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "java": java_version(find_java()),
        **{name: version(name) for name in ("torch", "torchserve", "pillow", "numpy")},
        "commit": commit(),
    }

"""Which device a worker computes on, how exactly, and with how many threads of the processor."""

import math
import os
from pathlib import Path

import torch

from vla_runtime.errors import SpecError

# Where control groups, version 2 and 1, state how much of the processors a container may use.
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
CPU_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def of_worker(gpu: int | None) -> str:
    """Return the device of a worker that the server promised GPU number `gpu`, or none.

    The number counts the GPUs that this process sees: CUDA_VISIBLE_DEVICES has been applied to it.

    Raises:
        SpecError: there is no such GPU; a policy that was sized for one must not serve on the CPU unnoticed.
    """
    if gpu is None or gpu < 0:
        return "cpu"
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu >= found:
        raise SpecError(
            f"GPU {gpu} was promised to this worker, and torch {torch.__version__} can use {found}: check "
            "the driver, CUDA_VISIBLE_DEVICES and torch's build, or serve on the CPU by `--gpus 0`"
        )
    return f"cuda:{gpu}"


def prepare(device: str, *, tf32: bool = False) -> torch.device:
    """Make a device the current one of this thread, and set the precision of float32 products on it."""
    found = torch.device(device)
    if found.type == "cuda":
        # Libraries and graphs that name no device use the current one.
        index = torch.cuda.current_device() if found.index is None else found.index
        torch.cuda.set_device(index)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        return torch.device("cuda", index)
    return found


def threads(workers: int) -> int:
    """Return this worker's share of the processors: its affinity, bounded by the container's quota."""
    allowed = min(len(os.sched_getaffinity(0)), _quota())
    return max(1, int(allowed) // workers)


def _quota() -> float:
    """Return the processors' time that the control group allows [cores], infinity where it sets no limit."""
    try:
        if CPU_MAX.is_file():
            quota, period = CPU_MAX.read_text().split()
        else:
            quota, period = CPU_QUOTA.read_text(), CPU_PERIOD.read_text()
        cores = int(quota) / int(period)
    except (OSError, ValueError):  # no file, or "max"
        return math.inf
    return max(1.0, cores) if cores > 0 else math.inf

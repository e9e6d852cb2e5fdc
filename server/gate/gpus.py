"""What this host's NVIDIA GPUs do, as Prometheus text: asked of `nvidia-smi` when somebody scrapes."""

import asyncio
import shutil
import subprocess
from collections.abc import Sequence

# Metric, what it is, what `nvidia-smi` calls it, and one of its units in ours.
GAUGES = (
    ("vla_gpu_utilization_ratio", "Share of the last moment in which it computed.", "utilization.gpu", 0.01),
    ("vla_gpu_memory_used_bytes", "Memory that all programs use.", "memory.used", 2.0**20),
    ("vla_gpu_memory_bytes", "Memory that it has.", "memory.total", 2.0**20),
    ("vla_gpu_temperature_celsius", "Temperature.", "temperature.gpu", 1.0),
    ("vla_gpu_power_watts", "Power drawn.", "power.draw", 1.0),
)
QUERY = ("--query-gpu=index," + ",".join(field for _, _, field, _ in GAUGES), "--format=csv,noheader,nounits")
# A driver in trouble may never answer; the other metrics do not wait for it [s].
TIMEOUT_S = 2.0


class Gpus:
    """The GPUs that this host, or container, sees; none where there is no `nvidia-smi`."""

    def __init__(self) -> None:
        self._program = shutil.which("nvidia-smi")
        self._asked: asyncio.Future[str] | None = None

    async def text(self) -> bytes:
        """Return their gauges; nothing where they can't be read, or not in time."""
        if self._program is None:
            return b""
        if self._asked is None or self._asked.done():
            loop = asyncio.get_running_loop()
            self._asked = loop.run_in_executor(None, _ask, self._program)
        try:
            said = await asyncio.wait_for(asyncio.shield(self._asked), TIMEOUT_S)
        except (TimeoutError, OSError, subprocess.SubprocessError):
            return b""
        return gauges([line.split(", ") for line in said.splitlines()])


def _ask(program: str) -> str:
    return subprocess.run(
        [program, *QUERY], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stdout


def gauges(rows: Sequence[Sequence[str]]) -> bytes:
    """Return what `nvidia-smi` said, a row a GPU; what it does not know, as of a MIG slice, is left out."""
    lines = []
    for column, (name, help_text, _, unit) in enumerate(GAUGES, 1):
        values = {row[0]: row[column] for row in rows if len(row) > len(GAUGES)}
        known = {gpu: float(value) * unit for gpu, value in values.items() if _is_number(value)}
        if known:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
            lines += [f'{name}{{gpu="{gpu}"}} {value:.12g}' for gpu, value in known.items()]
    return "".join(line + "\n" for line in lines).encode()


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()

"""Check a GPU host: its tests, parity with the CPU, failures, memory, speed, robots per host.

    python -m bench gpu                          all parts, or those that an earlier run did not finish
    python -m bench gpu --parts speed robots     these alone, anew

Needs this checkout, torch and no network. Without a GPU it runs what it can on the CPU.
"""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from bench.gpu import report
from bench.gpu.parts import PARTS, Run
from vla.provenance import commit

# Time that each part may take [s]; a part ends what it has begun.
BUDGET_S = {
    "tests": 60,
    "served": 30,
    "failures": 60,
    "parity": 120,
    "memory": 45,
    "speed": 110,
    "robots": 75,
    "http": 75,
}


@dataclass(frozen=True)
class Options:
    """What to check, and where the report goes."""

    # Parts to run: tests, served, failures, parity, memory, speed, robots, http. Default: all not yet done.
    parts: tuple[str, ...] = ()
    # Folder of the parts' results and of the report.
    output: Path = Path("build/gpu")
    # Share of the usual time that each part may take.
    share: float = 1.0
    # Check the CPU instead, as on a machine without a GPU.
    cpu: bool = False


def main(arguments: list[str]) -> int:
    """Run the parts and write the report: 0, or 1 where one failed."""
    options = tyro.cli(
        Annotated[Options, tyro.conf.OmitArgPrefixes],
        prog="python -m bench gpu",
        description=__doc__,
        args=arguments,
    )
    if unknown := [name for name in options.parts if name not in PARTS]:
        sys.exit(f"error: no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    on_gpu = torch.cuda.is_available() and not options.cpu
    if not on_gpu:
        _say("no GPU that torch can use: what needs none is checked on the CPU")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "host.json").write_text(json.dumps(host(on_gpu=on_gpu), indent=2))
    for name in PARTS:
        _run(name, options, "cuda:0" if on_gpu else "cpu")
    kept = report.write(options.output)
    _say(f"{options.output}/report.md, report.json and plots")
    return int(not kept)


def _run(name: str, options: Options, device: str) -> None:
    """Run one part, unless it was done before or is not asked for, and keep what it found."""
    path = options.output / f"{name}.json"
    if (options.parts and name not in options.parts) or (not options.parts and path.is_file()):
        return
    began = time.monotonic()
    _say(f"--- {name} (at most about {BUDGET_S[name]} s)")
    run = Run(device, began + options.share * BUDGET_S[name], lambda line: _say(f"    {line}"))
    try:
        found = PARTS[name](run)
    except Exception as error:  # one part must not cost the others
        found = {"error": f"{type(error).__name__}: {str(error)[:500]}", "ok": False}
        _say(f"    {found['error']}")
    found["took_s"] = round(time.monotonic() - began, 1)
    path.write_text(json.dumps(found, indent=2, default=lambda value: value.item()))
    _say(f"--- {name}: {'ok' if found['ok'] else 'FAILED'} after {found['took_s']} s")


def host(*, on_gpu: bool) -> dict[str, Any]:
    """Return what the figures are measured on."""
    about: dict[str, Any] = {
        "device": "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
    }
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"sm_{properties.major}{properties.minor}",
            "gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "mig": _asked("nvidia-smi", "--query-gpu=mig.mode.current", "--format=csv,noheader"),
            "driver": _asked("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return about


def _asked(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

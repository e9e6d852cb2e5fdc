"""The short parts of the check: the tests, the default archive, memory."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from archive.read import unpack
from bench.gpu.part import Findings, Run
from bench.policies import ROOT, in_process, of_architecture, robot_requests
from export.export import Options, export
from vla_runtime.policy import Policy

DEFAULT = ROOT / "checkpoints" / "grounded"


def tests(run: Run) -> Findings:
    """Run the tests that need a GPU, and those of the device's choice."""
    files = ["tests/unit/runtime/test_staging.py", "tests/unit/runtime/test_device.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    run.say(lines[-1])
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return Findings.of([lines[-1], *failed], {"status": done.returncode}, ok=done.returncode == 0)


def served(run: Run) -> Findings:
    """Export the default checkpoint, load it as a worker does, and replay its example on the device."""
    with tempfile.TemporaryDirectory() as folder:
        options = Options(str(DEFAULT), Path(folder) / "vla.mar")
        export(options)
        policy = Policy.load(unpack(options.output, Path(folder) / "unpacked"), run.device)
        policy.warm_up()
    says = f"The default archive answers its example on {policy.device}, CUDA graphs: {policy.graphs}."
    return Findings.of([says], {"graphs": policy.graphs}, ok=True)


def memory(run: Run) -> Findings:
    """Compute 10,000 batches of changing size and commands; the device's memory must not grow."""
    run.need_gpu()
    policy = in_process(of_architecture("command_attention"), run.device)
    policy.warm_up()
    prepared = [policy.prepare(row) for row in robot_requests(32)]
    allocated_mib = []
    for index in range(10_000):
        policy.compute(prepared[: 1 + index % 32])
        if index % 1000 == 999:
            allocated_mib.append(torch.cuda.memory_allocated(run.device) / 2**20)
    reserved_mib = torch.cuda.memory_reserved(run.device) / 2**20
    values = ", ".join(f"{value:.1f}" for value in allocated_mib)
    says = f"Allocated after each 1,000 of 10,000 batches [MiB]: {values}; reserved {reserved_mib:.0f}."
    figures = {"allocated_mib": allocated_mib, "reserved_mib": reserved_mib}
    return Findings.of([says], figures, ok=allocated_mib[-1] <= allocated_mib[0] + 1)

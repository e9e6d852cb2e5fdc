"""A pi0 in full size, 3.24 billion random weights in bfloat16: exported, served, asked over HTTP, compared.

    make full-size

It writes 20 GB below TMPDIR and removes them, needs 10 GB of memory, and takes five minutes or more. It
fails where the answer is not the module's own. docs/import.md has what it found.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import requests
import torch
from golden.drawn import picture
from golden.folders import HERE as GOLDEN
from golden.folders import TOKENIZER
from golden.in_process import served
from safetensors.torch import save_file
from sources import png

from archive.read import read_policy
from export.find import find
from export.foreign import paligemma
from export.foreign.facts import Facts
from export.foreign.pi0 import siglip
from export.foreign.pi0.model import Config, pi
from export.lower import Exact
from server.ports import free_port
from vla_runtime.errors import RequestError

ROOT = Path(__file__).parents[2]
# openpi's folder that the large one is made like: one camera, so one chunk is as cheap as it gets.
LIKE, ROBOT, MARGIN = GOLDEN / "openpi_pi0_aloha_sim", "aloha_sim", 20.0
WORDS, WIDTH, HORIZON = 257152, 32, 50
# What must be free [bytes]: the checkpoint, and two copies of the module while it is packed.
DISK, MEMORY = 20 << 30, 10 << 30
# Allowed difference of an answer from the module's own in float32: root mean square, normalised.
ALLOWED = 0.05
SEED, COMMAND = 7, "put the towel on the left"


def main() -> int:
    """Do all of it: 0. Too little room, a step that fails, another answer than the module's: 1."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--threads", type=int, help="of the export; as many as there are cores by default")
    threads = options.parse_args().threads
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="full-size-") as temporary:
        folder = Path(temporary)
        if lack := lacking(folder):
            print(f"full size refused: {lack}", file=sys.stderr)
            return 1
        environment = os.environ | {"TMPDIR": temporary}
        if threads:
            environment |= {"OMP_NUM_THREADS": str(threads)}
        count = make(folder / "pi0")
        say(f"{count / 1e9:.2f} billion weights, {size(folder / 'pi0'):.2f} GB")
        archive = exported(folder, environment)
        return judged(folder, archive, answered(archive, environment))


def lacking(folder: Path) -> str:
    """Return what there is too little of, or nothing."""
    disk, memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    if disk < DISK:
        return f"{folder.parent} has {disk / 1e9:.0f} GB free and {DISK / 1e9:.0f} are needed: set TMPDIR"
    if memory < MEMORY:
        return f"{memory / 1e9:.0f} GB of memory are free and {MEMORY / 1e9:.0f} are needed"
    return ""


def make(folder: Path) -> int:
    """Write the folder as openpi's converter does, and return how many weights it has."""
    config = Config(
        vision=siglip.Sizes(
            paligemma.TOWER_WIDTH, paligemma.TOWER_DEPTH, 4304, paligemma.TOWER_HEADS, 14, 224
        ),
        language=paligemma.VARIANTS["gemma_2b"],
        expert=paligemma.VARIANTS["gemma_300m"],
        vocabulary=WORDS,
        state=WIDTH,
        action=WIDTH,
        horizon=HORIZON,
        steps=10,
        min_period=4e-3,
        max_period=4.0,
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in pi(config).state_dict().items()}
    table = paligemma.table({}, paligemma.OF_PI0)
    drawn = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))
    weights = {table.key(name): random(shape, drawn) for name, shape in shapes.items()}
    for part in ("assets", "meta"):
        shutil.copytree(LIKE / part, folder / part)
    declared = json.loads((LIKE / "config.json").read_text())
    declared |= {"action_dim": WIDTH, "action_horizon": HORIZON}
    (folder / "config.json").write_text(json.dumps(declared))
    save_file(weights, folder / "model.safetensors")
    return sum(weight.numel() for weight in weights.values())


def random(shape: torch.Size, drawn: torch.Tensor) -> torch.Tensor:
    """Return a weight in bfloat16, of a size that keeps activations near 1."""
    count = math.prod(shape)
    scale = 0.02 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5
    block = (drawn[:count] * scale).bfloat16()
    return block.repeat(-(-count // len(block)))[:count].clone().reshape(shape)


def exported(folder: Path, environment: dict[str, str]) -> Path:
    """Export the folder by the command that docs/import.md shows, and return the archive."""
    archive, source, began = folder / "pi0.mar", folder / "pi0", time.monotonic()
    arguments = ["--from", "openpi", source, "--robot", ROBOT, "--names", source / "meta" / "names.json"]
    arguments += ["--margin", MARGIN, "--tokenizer", TOKENIZER, "--precision", "bfloat16", "--buckets", 1]
    command = [sys.executable, "-u", "-m", "export", *map(str, arguments), "--output", str(archive)]
    with running(command, environment) as child, peaks(child.pid) as found:
        for line in child.stdout or ():
            say(f"  {line.rstrip()}")
        if child.wait():
            sys.exit(f"the export ended with status {child.returncode}")
    say(f"exported in {time.monotonic() - began:.0f} s; {shown(found)}; archive {size(archive):.2f} GB")
    return archive


def answered(archive: Path, environment: dict[str, str]) -> list[list[float]]:
    """Serve the archive by `python -m server`, and return the actions of one request over HTTP."""
    port, began = free_port(), time.monotonic()
    command = [sys.executable, "-u", "-m", "server", "--archive", str(archive), "--port", str(port)]
    with running(command, environment) as server, peaks(server.pid) as found:
        log: list[str] = []
        for line in server.stdout or ():
            log.append(line)
            if line.startswith("ready: "):
                break
        else:
            sys.exit("".join(["the server ended:\n", *log[-20:]]))
        say(f"served after {time.monotonic() - began:.0f} s")
        actions = [ask(f"http://127.0.0.1:{port}/predictions/pi0", archive) for _ in range(3)][-1]
        say(f"served: {shown(found)}")
    return actions


def ask(url: str, archive: Path) -> list[list[float]]:
    """Post a request, and return its actions."""
    state = read_policy(archive)["example"]["state"]
    data = {"command": COMMAND, "state": json.dumps(state), "seed": str(SEED)}
    began = time.monotonic()
    answer = requests.post(url, files={"image": png(picture(SEED, 240, 320))}, data=data, timeout=300)
    if answer.status_code != 200:
        sys.exit(f"the request got {answer.status_code}: {answer.text[:500]}")
    took = answer.json()["timing_ms"]["inference"] / 1000
    say(f"answered in {time.monotonic() - began:.1f} s, {took:.1f} s of them the policy; {load()}")
    return answer.json()["actions"]


def judged(folder: Path, archive: Path, actions: list[list[float]]) -> int:
    """Compare an answer with the module's own forward pass, which computes in float32."""
    source = folder / "pi0"
    facts = Facts(
        origin="openpi",
        robot=ROBOT,
        names=source / "meta" / "names.json",
        margin=MARGIN,
        tokenizer=TOKENIZER,
    )
    policy = served(find(str(source), facts, "bfloat16"))
    state = read_policy(archive)["example"]["state"]
    row = {"image": png(picture(SEED, 240, 320)), "command": COMMAND, "state": state, "seed": SEED}
    with Exact():
        answer = policy.infer([row])[0]
    if isinstance(answer, RequestError):
        sys.exit(f"the module refuses the request: {answer.message}")
    scale = np.array(policy.spec.action.scale)  # pyright: ignore[reportAttributeAccessIssue]
    differences = (np.array(actions) - np.array(answer.chunk.actions)) / scale
    typical = float(np.sqrt(np.square(differences).mean()))
    say(
        f"HTTP and the module in float32, normalised: largest difference {np.abs(differences).max():.1e}, "
        f"root mean square {typical:.1e} of {np.ptp(np.array(actions) / scale, axis=0).max():.1f}; "
        f"at most {ALLOWED} is allowed"
    )
    return 0 if typical <= ALLOWED else 1


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program whose output can be read, and end it with the block, whatever ends that."""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.terminate()
            for _ in program.stdout or ():
                pass  # until it has ended


@contextlib.contextmanager
def peaks(pid: int) -> Iterator[dict[str, float]]:
    """Fill what it yields with the most memory that each of a process and its children had resident [GiB]."""
    found: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            with contextlib.suppress(psutil.Error, OSError):
                root = psutil.Process(pid)
                for process in (root, *root.children(recursive=True)):
                    role = role_of(process.cmdline())
                    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
                    found[role] = max(found.get(role, 0.0), peak / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def role_of(command: list[str]) -> str:
    """Return what a process is to a reader, by its command line."""
    text = " ".join(command)
    roles = {"model_service_worker": "worker", "org.pytorch.serve": "front end", "-m server": "gate"}
    return next((role for mark, role in roles.items() if mark in text), "export")


def shown(found: dict[str, float]) -> str:
    """Return the peaks as text."""
    return "peak memory " + ", ".join(f"{role} {peak:.1f} GiB" for role, peak in found.items())


def size(path: Path) -> float:
    """Return what a file or folder has [GB]."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e9


def load() -> str:
    """Return how busy the machine is, others among them."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


BEGAN = time.monotonic()


def say(line: str) -> None:
    """Print a line with the time since the start."""
    print(f"[{time.monotonic() - BEGAN:4.0f} s] {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""What is measured of a policy without the simulator: validation errors, latency, memory."""

import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from archive.read import unpack
from bench.answers import answers
from bench.timing import taken_s
from loadtest.host import peak_mib
from vla import checkpoint
from vla.models import Batch
from vla.tabletop.commands import parse
from vla.tabletop.demonstrations import Demonstrations
from vla.training.batches import Batches
from vla.training.imitation import action_error
from vla_runtime.policy import Policy
from vla_runtime.preprocessing import normalise_pictures

# held_out: the trained goals in held-out phrasings; excluded: the goals that training excluded;
# shuffled: commanded another goal than the actions pursue; blank: a grey picture.
Probe = Literal["held_out", "excluded", "shuffled", "blank"]

# Frames, and commands of each, that the validation error is taken over.
FRAMES, COMMANDS = 512, 2
# Grey level of a blank picture.
GREY = 127
# Requests before the measurement, and in it.
WARM_UP, REPEATS = 5, 50


def validation_errors(folder: Path, data: Path) -> dict[Probe, tuple[float, ...]]:
    """Return a checkpoint's mean absolute error on held-out episodes, by probe.

    Returns:
        one number a dimension, mean over the chunk [action unit]; no `excluded` where training excluded none

    Raises:
        SpecError, DatasetError: the checkpoint or the data set is incomplete, or they do not fit.
    """
    config, model = checkpoint.load(folder)
    made = config.training
    excluded = tuple(parse(goal) for goal in made["excluded_goals"])
    batches = Batches(
        Demonstrations.load(data),
        config,
        made["seed"],
        made["validation_share"],
        made["counterfactual"],
        excluded,
    )
    plain = batches.validation(FRAMES, COMMANDS)
    probes: dict[Probe, Batch] = {
        "held_out": plain,
        "shuffled": batches.validation(FRAMES, COMMANDS, shuffled=True),
        "blank": plain._replace(images=_blank(plain, config)),
    }
    if excluded:
        probes["excluded"] = batches.validation(FRAMES, COMMANDS, excluded=True)
    return {probe: action_error(batches, model, "cpu", batch) for probe, batch in probes.items()}


def _blank(batch: Batch, config: checkpoint.Config) -> torch.Tensor:
    return normalise_pictures(torch.full(batch.images.shape, GREY, dtype=torch.uint8), config.cameras)


def latency_and_memory(archive: Path, sizes: tuple[int, ...], threads: int) -> tuple[dict[int, float], float]:
    """Measure an archive in this process, which must be a fresh one, on the CPU.

    Returns:
        batch size -> median time from encoded pictures to safe chunks [ms], and the most memory that the
        process has had resident [MiB]

    Raises:
        SpecError: the archive can't be served; says why.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="vla_latency_") as folder:
        policy = Policy.load(unpack(archive, Path(folder)), "cpu", threads)
        policy.warm_up()
        row = policy.example_row(Path(folder))
    latency_ms = {}
    for size in sizes:
        taken = taken_s(partial(answers, policy, [row] * size), least=REPEATS, warm_up=WARM_UP)
        latency_ms[size] = 1000 * median(taken)
    return latency_ms, peak_mib(os.getpid())

"""Other servers around the same `Policy.infer`, and what they have in common; one worker each."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from loadtest.body import MSGPACK
from vla_runtime import wire
from vla_runtime.errors import RequestError
from vla_runtime.observation import Row
from vla_runtime.policy import Policy

# Names the folder of the unpacked archive, for a peer's processes.
FOLDER = "VLA_FOLDER"


def load() -> Policy:
    """Load and warm the policy as a worker of ours does."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    policy = Policy.load(Path(os.environ[FOLDER]), device, threads)
    policy.warm_up()
    return policy


def answers(policy: Policy, bodies: Sequence[bytes]) -> list[bytes]:
    """Answer a batch of msgpack bodies in msgpack."""
    rows: list[Row | RequestError] = [wire.read({"body": body}, MSGPACK) for body in bodies]
    said = [
        answer.body() if isinstance(answer, RequestError) else wire.answer_body(answer, policy.spec, 0.0)
        for answer in policy.infer(rows)
    ]
    return [wire.serialise(body | {"request_id": ""}, MSGPACK)[0] for body in said]

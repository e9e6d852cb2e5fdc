"""The attackers, a process of their own: `python -m bench.faults.attackers PLAN` prints their answers.

Each connection sends the next request when the last is answered or refused, and is opened again when it is
closed; those that heed wait as long as a refusal says. The process yields to robots and servers on its cores
(`nice`).
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

from loadtest.judge import percentile

# Longest wait for an answer, and between two bytes of a slow body [s].
ANSWER_S, PAUSE_S = 30.0, 0.5
NICE = 19


class Plan(msgspec.Struct, frozen=True):
    """One attack."""

    port: int
    seconds: float
    connections: int
    # Whole requests, in turns; of a slow attack the heads, whose bodies come byte by byte.
    requests: list[bytes]
    slow: bool = False
    # Whether each connection waits as long as a refusal says before it asks again.
    heeds: bool = False


class Found(msgspec.Struct, frozen=True):
    """What the attackers were answered."""

    # Answers by status; `closed`: none.
    answers: dict[str, int]
    # Time until an answer [s], by status: median and 95th percentile.
    p50_s: dict[str, float]
    p95_s: dict[str, float]
    # Whether each answer with 429 said when to come again.
    retry_after: bool


async def attack(plan: Plan) -> Found:
    """Attack, and return what came of it."""
    taken: dict[str, list[float]] = {}
    told = Counter[bool]()
    requests = itertools.cycle(plan.requests)
    end_s = time.monotonic() + plan.seconds

    async def connect() -> None:
        while time.monotonic() < end_s:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", plan.port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            with contextlib.suppress(OSError):
                while time.monotonic() < end_s:
                    began = time.monotonic()
                    status, after = await _exchanged(reader, writer, next(requests), slow=plan.slow)
                    taken.setdefault(status, []).append(time.monotonic() - began)
                    if status == "429":
                        told[after is not None] += 1
                    if status == "closed" or (after is None and reader.at_eof()):
                        break
                    if plan.heeds and after is not None:
                        await asyncio.sleep(after)
            writer.close()

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(plan.seconds + 5):
            await asyncio.gather(*(connect() for _ in range(plan.connections)))
    p50_s, p95_s = (
        {status: percentile(times, percent) for status, times in taken.items()} for percent in (50, 95)
    )
    return Found({status: len(times) for status, times in taken.items()}, p50_s, p95_s, not told[False])


async def _exchanged(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, *, slow: bool
) -> tuple[str, float | None]:
    """Send one request, and return its answer's status and the time after which to come again [s]."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(ANSWER_S):
            writer.write(request)
            answering = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
            try:
                while slow and not answering.done():
                    await asyncio.wait({answering}, timeout=PAUSE_S)
                    writer.write(b"x")
                head = (await answering).lower()
            finally:
                answering.cancel()
            await reader.readexactly(_number(head, b"content-length") or 0)
            if b"\r\nconnection: close" in head:
                writer.close()
                reader.feed_eof()
            return head[9:12].decode(), _number(head, b"retry-after")
    return "closed", None


def _number(head: bytes, name: bytes) -> int | None:
    """Return what a header says; `head` in small letters."""
    _, found, rest = head.partition(b"\r\n%b:" % name)
    return int(rest.partition(b"\r\n")[0]) if found else None


def main() -> None:
    """Read the plan from the file that is named, and print what came of it."""
    os.nice(NICE)
    plan = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    print(json.dumps(msgspec.to_builtins(asyncio.run(attack(plan)))))


if __name__ == "__main__":
    main()

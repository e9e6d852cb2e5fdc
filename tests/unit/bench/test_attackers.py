"""Attackers count what they are answered, and wait where they heed a refusal."""

import asyncio
import json

import pytest
from policy_server import MSGPACK, running_server

from bench.faults.attackers import Plan, attack
from bench.faults.hostile import request

GOOD = request(b"\x80", MSGPACK, "key")


@pytest.mark.parametrize(("heeds", "fewest", "most"), [(True, 2, 2), (False, 6, 10_000)])
def test_refused_attackers(*, heeds: bool, fewest: int, most: int) -> None:
    with running_server() as server:
        server.status, server.more = 429, {"Retry-After": "2"}
        found = asyncio.run(attack(Plan(server.server_port, 1.0, 2, [GOOD], heeds=heeds)))

    assert set(found.answers) == {"429"}
    assert fewest <= found.answers["429"] <= most
    assert found.retry_after


def test_a_refusal_without_a_time_is_told() -> None:
    with running_server() as server:
        server.status, server.answer = 429, json.dumps({})
        found = asyncio.run(attack(Plan(server.server_port, 0.3, 1, [GOOD], heeds=True)))

    assert found.answers["429"] > 1
    assert not found.retry_after

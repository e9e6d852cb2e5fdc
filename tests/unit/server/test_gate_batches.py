"""Batches of the gate: what goes into one, and how its answers find their clients."""

import asyncio
import json
import time
from collections.abc import Sequence

import pytest
from small_torchserve import Running, answer, gate

from server.gate import company, shares
from server.gate import queue as queue_module
from server.gate.company import Company
from server.gate.queue import Room

ROOM = Room(batches=1, largest=4, waiting=8)


def request(body: bytes, client: bytes = b"a", path: bytes = b"/predictions/vla", name: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nAccept: c/d\r\nX-Client: %b\r\n"
    named = b"X-Request-Id: %b\r\n" % name if name else b""
    return head % (path, client) + named + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def behind_one(running: Running, requests: Sequence[bytes]) -> list[tuple[int, dict[str, str], bytes]]:
    """Ask `requests`, one after the other, while one before them is computed; return their answers."""
    first = await running.open(request(b"wait"))
    await running.until(lambda: len(running.torchserve.seen) == 1)
    opened = []
    for count, asked in enumerate(requests, 1):
        opened.append(await running.open(asked))
        waiting = b"vla_gate_waiting %d\n" % count
        await running.until(lambda waiting=waiting: waiting in running.hop.metrics())
    running.torchserve.go.set()
    assert (await answer(first))[0] == 200
    return [await answer(connection) for connection in opened]


def test_all_that_wait_are_one_batch_and_each_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "SHARED_BATCH_S", 60)  # however slow the machine is

    async def check(running: Running) -> None:
        began_s = time.time()
        answers = await behind_one(
            running, [request(b"1", name=b"one"), request(b"bad", b"b"), request(b"3")]
        )

        assert running.torchserve.seen == [b"wait", b"1 + bad + 3"]
        assert [(status, body) for status, _, body in answers] == [(200, b"1"), (422, b"bad"), (200, b"3")]
        assert {headers["content-type"] for _, headers, _ in answers} == {"a/b"}
        _, (first, second, third) = running.torchserve.batches
        assert (first.content_type, first.accept, first.request_id) == ("a/b", "c/d", "one")
        assert began_s < first.arrived_s < second.arrived_s < third.arrived_s < time.time()
        # One without an id of its own gets one, by which its answer and the log name it.
        assert answers[0][1]["request-id"] == "one"
        assert len({headers["request-id"] for _, headers, _ in answers}) == 3
        assert {answers[1][1]["request-id"]} == {second.request_id}
        assert running.hop.counters.answers == {2: 3, 4: 1, 5: 0}
        metrics = running.hop.metrics().decode()
        assert 'vla_gate_batch_seconds_count{size="1"} 1\n' in metrics
        assert 'vla_gate_batch_seconds_count{size="3"} 1\n' in metrics

    gate(check, ROOM)


def test_one_alone_is_a_batch_too() -> None:
    async def check(running: Running) -> None:
        for _ in range(3):
            assert (await running.ask(request(b"x")))[2] == b"x"
        assert [len(batch) for batch in running.torchserve.batches] == [1, 1, 1]
        assert len({batch[0].ticket for batch in running.torchserve.batches}) == 3

    gate(check, ROOM)


def test_requests_of_a_worker_that_takes_no_batch_go_on_as_they_came() -> None:
    async def check(running: Running) -> None:
        assert (await running.ask(request(b"x")))[2] == b"x"
        assert (running.torchserve.seen, running.torchserve.batches) == ([b"x"], [])

    gate(check)


def test_one_that_is_not_ready_is_asked_for_again() -> None:
    async def check(running: Running) -> None:
        slow, other = await behind_one(running, [request(b"slow 2", name=b"s"), request(b"x")])
        assert (slow[0], slow[2], other[2]) == (200, b"slow 2", b"x")
        assert running.torchserve.seen == [b"wait", b"slow 2 + x", b"", b""]
        asked = [(one.ticket, one.again) for batch in running.torchserve.batches[1:] for one in batch[:1]]
        assert asked == [(asked[0][0], False), (asked[0][0], True), (asked[0][0], True)]
        assert b"vla_gate_computing 0\n" in running.hop.metrics()

    gate(check, ROOM)


def test_one_whose_ticket_is_not_known_any_more_is_sent_anew() -> None:
    async def check(running: Running) -> None:
        (slow,) = await behind_one(running, [request(b"slow forget 1")])
        assert (slow[0], slow[2]) == (200, b"slow forget 1")
        assert running.torchserve.seen == [b"wait", b"slow forget 1", b"", b"slow forget 1"]

    gate(check, ROOM)


def test_pauses_grow_up_to_a_longest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "AGAIN_S", 0.004)
    monkeypatch.setattr(queue_module, "LONGER", 3.0)
    monkeypatch.setattr(queue_module, "SELDOM_S", 0.05)

    async def check(running: Running) -> None:
        loop, at_s = asyncio.get_running_loop(), list[float]()
        asked = asyncio.create_task(running.ask(request(b"slow 6")))
        for count in range(1, 8):
            await running.until(lambda count=count: len(running.torchserve.batches) == count)
            at_s.append(loop.time())
        assert (await asked)[2] == b"slow 6"
        # 4, 12 and 36 ms, and then 50 each, of which a busy machine sees the first moment late.
        assert at_s[-1] - at_s[0] > 0.15

    gate(check, ROOM)


def test_one_is_asked_for_again_when_the_worker_says() -> None:
    async def check(running: Running) -> None:
        began_s = time.monotonic()
        assert (await running.ask(request(b"slow said 1")))[2] == b"slow said 1"
        assert time.monotonic() - began_s > 0.19
        assert len(running.torchserve.batches) == 2

    gate(check, ROOM)


def test_one_that_nobody_waits_for_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "AGAIN_S", 0.1)

    async def check(running: Running) -> None:
        _, writer = await running.open(request(b"slow 9"))
        await running.until(lambda: b"vla_gate_computing 0\n" in running.hop.metrics())
        await running.until(lambda: running.torchserve.seen == [b"slow 9"])
        writer.transport.abort()
        await running.until(lambda: running.hop.counters.abandoned.total() == 1)
        await asyncio.sleep(0.3)
        assert running.torchserve.seen == [b"slow 9"]
        assert b"vla_gate_waiting 0\n" in running.hop.metrics()

    gate(check, ROOM)


def test_a_batch_has_requests_of_one_path_and_no_explanations() -> None:
    async def check(running: Running) -> None:
        paths = [b"predictions/vla", b"predictions/vla", b"predictions/vla/2.0", b"explanations/vla"]
        await behind_one(running, [request(b"%d" % i, path=b"/" + path) for i, path in enumerate(paths)])
        assert running.torchserve.seen == [b"wait", b"0 + 1", b"2", b"3"]

        running.torchserve.seen.clear()
        running.torchserve.go.clear()
        await behind_one(running, [request(b"e", path=b"/explanations/vla")] * 2)
        assert running.torchserve.seen == [b"wait", b"e", b"e"]

    gate(check, ROOM)


def test_a_batch_is_bounded_and_shared_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gate.shares.SHARED_BATCH_S", 60.0)

    async def check(running: Running) -> None:
        many = [request(b"a%d" % index) for index in range(5)]
        await behind_one(running, [*many, request(b"b0", b"b"), request(b"c0", b"c")])
        assert running.torchserve.seen == [b"wait", b"a0 + b0 + c0 + a1", b"a2 + a3 + a4"]

    gate(check, ROOM)


def test_after_a_long_batch_one_of_several_clients_has_one_request_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.gate.shares.SHARED_BATCH_S", 0.0)

    async def check(running: Running) -> None:
        many = [request(b"a%d" % index) for index in range(3)]
        await behind_one(running, [*many, request(b"b0", b"b"), request(b"c0", b"c")])
        assert running.torchserve.seen[:2] == [b"wait", b"a0 + b0 + c0"]

    gate(check, ROOM)


def test_a_batch_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "LARGEST_BATCH", 10)

    async def check(running: Running) -> None:
        await behind_one(running, [request(b"12345"), request(b"67890"), request(b"1"), request(b"x" * 11)])
        assert running.torchserve.seen == [b"wait", b"12345 + 67890", b"1", b"x" * 11]

    gate(check, ROOM)


def test_who_hangs_up_before_its_batch_is_not_in_it() -> None:
    async def check(running: Running) -> None:
        first = await running.open(request(b"wait"))
        await running.until(lambda: len(running.torchserve.seen) == 1)
        opened = [await running.open(request(b"%d" % index)) for index in range(3)]
        await running.until(lambda: b"vla_gate_waiting 3\n" in running.hop.metrics())
        opened[1][1].transport.abort()
        await running.until(lambda: b"vla_gate_waiting 2\n" in running.hop.metrics())
        running.torchserve.go.set()
        assert [(await answer(one))[2] for one in (first, opened[0], opened[2])] == [b"wait", b"0", b"2"]
        assert running.torchserve.seen[1:] == [b"0 + 2"]
        assert running.hop.counters.abandoned == {"waiting": 1, "computing": 0}

    gate(check, ROOM)


def test_who_hangs_up_within_its_batch_harms_nobody() -> None:
    async def check(running: Running) -> None:
        first = await running.open(request(b"wait"))
        await running.until(lambda: len(running.torchserve.seen) == 1)
        opened = [await running.open(request(body)) for body in (b"wait", b"2")]
        await running.until(lambda: b"vla_gate_waiting 2\n" in running.hop.metrics())
        running.torchserve.go.set()
        running.torchserve.go = type(running.torchserve.go)()  # the next batch waits again
        assert (await answer(first))[0] == 200
        await running.until(lambda: len(running.torchserve.seen) == 2)
        opened[0][1].transport.abort()
        await running.until(lambda: running.hop.counters.abandoned["computing"] == 1)
        running.torchserve.go.set()
        assert (await answer(opened[1]))[2] == b"2"

    gate(check, ROOM)


@pytest.mark.parametrize(
    ("body", "status", "code"), [(b"die", 500, "server_error"), (b"lost", 502, "unavailable")]
)
def test_what_fails_as_a_whole_fails_each(body: bytes, status: int, code: str) -> None:
    async def check(running: Running) -> None:
        answers = await behind_one(running, [request(body), request(b"x")])
        assert [(found, json.loads(said)["error"]["code"]) for found, _, said in answers] == [
            (status, code)
        ] * 2
        assert (await running.ask(request(b"next")))[2] == b"next"

    gate(check, ROOM)


def test_a_worker_that_had_company_is_kept_free_for_it_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(company, "WAIT_S", 0.3)

    async def check(running: Running) -> None:
        await behind_one(running, [request(b"1"), request(b"2")])
        # Both ask again: the first of them is not sent alone.
        again = [await running.open(request(body)) for body in (b"3", b"4")]
        assert [(await answer(one))[2] for one in again] == [b"3", b"4"]
        # One does not: it is not waited for any longer.
        assert (await running.ask(request(b"5")))[2] == b"5"
        assert running.torchserve.seen == [b"wait", b"1 + 2", b"3 + 4", b"5"]

    gate(check, ROOM)


def go_on(running: Running) -> None:
    """Let what is computed now be answered, and the next wait."""
    running.torchserve.go.set()
    running.torchserve.go.clear()


def test_who_waits_when_no_company_comes_is_sent_on() -> None:
    """Formerly not where the loop's timer came a little early, as uvloop's does one time in four."""

    async def check(running: Running) -> None:
        for _ in range(30):
            running.torchserve.seen.clear()
            first = await running.open(request(b"wait"))
            await running.until(lambda: len(running.torchserve.seen) == 1)
            second = await running.open(request(b"wait"))
            other = await running.open(request(b"wait"))
            await running.until(lambda: b"vla_gate_waiting 2\n" in running.hop.metrics())
            go_on(running)
            await answer(first)
            await running.until(lambda: len(running.torchserve.seen) == 2)
            last = await running.open(request(b"x"))
            await running.until(lambda: b"vla_gate_waiting 1\n" in running.hop.metrics())
            go_on(running)
            # Two are answered and do not come back; the last waited for them.
            assert [(await answer(one))[0] for one in (second, other, last)] == [200, 200, 200]
            assert running.torchserve.seen == [b"wait", b"wait + wait", b"x"]

    gate(check, ROOM)


def test_players_that_come_back_at_once_share_batches_and_robots_are_not_waited_for() -> None:
    usual = Company()
    for _ in range(20):  # of two answered both come back
        usual.begin(2, 0, 8)
        assert usual.awaited(1)
        usual.asked()
        usual.asked()
        assert not usual.awaited(2)
        usual.end()
    usual.begin(1, 1, 8)
    assert usual.awaited(1)  # one that waits waits for the one that was answered
    usual.end()
    usual.begin(1, 0, 8)
    assert not usual.awaited(1)  # one alone waits for nobody
    usual.end()
    usual.begin(8, 8, 8)
    assert not usual.awaited(8)  # a full batch neither
    assert usual.awaited(7)
    assert not usual.begin(8, 8, 8)  # another worker's batch does not prolong the wait
    usual.end()
    assert not usual.awaited(7)

    for _ in range(20):  # nobody comes back
        usual.begin(2, 0, 8)
        usual.end()
        usual.asked()
    usual.begin(2, 1, 8)
    assert not usual.awaited(1)

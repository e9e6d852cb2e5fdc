"""The gate's connections, in one event loop with a small TorchServe: what is answered, kept, and counted."""

import asyncio
import contextlib
import json

import pytest
from small_torchserve import POST, Running, answer, closed, gate

from server.gate import client as client_module
from server.gate.client import Client
from server.gate.queue import Room
from server.gate.refusal import Answer, Refusal
from server.gate.scrape import Scrape
from server.workers import Workers

GOOD = POST + b"X-Request-Id: one\r\nContent-Length: 1\r\n\r\nx"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
HEALTH = b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n"


def error(body: bytes) -> tuple[str, str]:
    found = json.loads(body)
    return found["error"]["code"], found["request_id"]


def test_an_answer_is_handed_on() -> None:
    async def check(running: Running) -> None:
        status, headers, body = await running.ask(GOOD)

        assert (status, body) == (200, b"x")
        assert headers == {"content-type": "a/b", "x-request-id": "one", "content-length": "1"}
        counters = running.hop.counters
        assert (counters.answers[2], sum(counters.refusals.values())) == (1, 0)
        assert "vla_gate_request_seconds_count 1\n" in counters.text().decode()
        assert "vla_gate_wait_seconds_count 1\n" in counters.text().decode()

    gate(check)


def test_connections_to_both_sides_are_kept() -> None:
    async def check(running: Running) -> None:
        connection = await running.open(GOOD * 3)
        for _ in range(3):
            assert (await answer(connection))[0] == 200
        connection[1].write(GOOD)
        assert (await answer(connection))[0] == 200

        assert running.torchserve.connections == 1

    gate(check)


@pytest.mark.parametrize("line", [b"Connection: close\r\n", b""])
def test_a_client_says_whether_its_connection_is_kept(line: bytes) -> None:
    async def check(running: Running) -> None:
        version = b"HTTP/1.1" if line else b"HTTP/1.0"
        connection = await running.open(
            GOOD.replace(b"HTTP/1.1", version).replace(b"Host: x\r\n", b"Host: x\r\n" + line)
        )
        assert (await answer(connection))[1]["connection"] == "close"
        assert await closed(connection)

    gate(check)


@pytest.mark.parametrize("body", [b"drop", b"drop again"])
def test_torchserve_that_hangs_up_is_502(body: bytes) -> None:
    async def check(running: Running) -> None:
        status, headers, said = await running.ask(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)

        assert (status, error(said)[0]) == (502, "unavailable")
        assert headers["request-id"] == error(said)[1] != ""
        assert running.hop.counters.refusals["unavailable"] == 1
        assert running.hop.counters.answers[5] == 1

    gate(check)


def test_a_kept_connection_that_torchserve_closed_is_replaced() -> None:
    async def check(running: Running) -> None:
        assert (await running.ask(GOOD))[0] == 200
        # It is closed after the request was sent, and before a byte of the answer.
        status, _, _ = await running.ask(POST + b"Content-Length: 4\r\n\r\ndrop")
        assert status == 502  # asked twice, and closed twice
        assert running.torchserve.seen == [b"x", b"drop", b"drop"]
        assert running.torchserve.connections == 2

    gate(check)


@pytest.mark.parametrize("body", [b"close", b"open"])
def test_an_answer_that_ends_the_connection_is_whole(body: bytes) -> None:
    async def check(running: Running) -> None:
        for count in (1, 2):
            status, _, said = await running.ask(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert (status, said) == (200, b"to the end" if body == b"open" else body)
            assert running.torchserve.connections == count
        assert running.hop.upstream.idle == []

    gate(check)


def test_without_torchserve_it_is_502() -> None:
    async def check(running: Running) -> None:
        running.hop.upstream._port = 1  # noqa: SLF001
        status, _, said = await running.ask(GOOD)
        assert (status, error(said)) == (502, ("unavailable", "one"))

    gate(check)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\n\n", 400, "bad_request"),
        (b"A" * 8192, 400, "bad_request"),
        (b"nonsense\r\n\r\n", 400, "bad_request"),
        (POST + b"Content-Length: 4194305\r\n\r\n", 413, "too_large"),
        (POST + CHUNKED + b"400003\r\n" + b"x" * (4 << 20) + b"xxx", 413, "too_large"),
        (POST + CHUNKED + b"400001\r\n" + b"x" * (4 << 20) + b"x\r\n", 413, "too_large"),
        (POST + CHUNKED + b"400000\r\n" + b"x" * (4 << 20) + b"\r\n1\r\nx\r\n", 413, "too_large"),
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", 404, "not_found"),
        (b"GET /predictions/vla HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
    ],
)
def test_what_is_refused_before_it_is_whole_ends_the_connection(sent: bytes, status: int, code: str) -> None:
    async def check(running: Running) -> None:
        connection = await running.open(sent)
        got, headers, body = await answer(connection)

        assert (got, error(body)[0], headers["connection"]) == (status, code, "close")
        assert await closed(connection)
        assert running.hop.counters.refusals[code] == running.hop.counters.answers[4] == 1
        assert running.torchserve.seen == []

    gate(check)


def test_bodies_up_to_4_mib_are_taken() -> None:
    async def check(running: Running) -> None:
        body = b"x" * (4 << 20)
        assert (await running.ask(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body))[0] == 200
        chunked = CHUNKED + b"400000\r\n" + body + b"\r\n0\r\n\r\n"
        assert (await running.ask(POST + chunked))[0] == 200
        assert [len(seen) for seen in running.torchserve.seen] == [len(body)] * 2

    gate(check)


def test_a_whole_request_that_is_refused_leaves_the_connection() -> None:
    async def check(running: Running) -> None:
        connection = await running.open(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + GOOD)
        assert (await answer(connection))[0] == 404
        assert (await answer(connection))[0] == 200
        ours = b"POST /predictions/ours HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
        connection[1].write(ours + GOOD)
        assert (await answer(connection))[0] == 415
        assert (await answer(connection))[0] == 200

    gate(check)


def test_a_client_that_waits_is_told_to_go_on() -> None:
    async def check(running: Running) -> None:
        connection = await running.open(POST + b"Content-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        assert await connection[0].readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection[1].write(b"x")
        assert (await answer(connection))[0] == 200

    gate(check)


def test_readiness_and_liveness() -> None:
    async def check(running: Running) -> None:
        status, headers, body = await running.ask(HEALTH)
        assert (status, headers["retry-after"], error(body)[0]) == (503, "1", "not_ready")
        running.hop.ready = True
        assert await running.ask(HEALTH) == (
            200,
            {"content-type": "application/json", "content-length": "20"},
            b'{"status": "ready"}\n',
        )
        assert (await running.ask(HEALTH.replace(b"ready", b"live")))[0] == 200
        assert running.torchserve.seen == [b"/ping"]

    gate(check)


def test_a_deadline_is_kept_and_what_waits_is_never_computed() -> None:
    async def check(running: Running) -> None:
        waits = [await running.open(POST + b"Content-Length: 4\r\n\r\nwait") for _ in range(2)]
        await running.until(lambda: len(running.torchserve.seen) == 2)
        body = b'{"deadline_ms": 30}'
        late = b"POST /predictions/vla HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        status, _, said = await running.ask(late + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert (status, error(said)[0]) == (504, "deadline_expired")
        assert running.hop.counters.abandoned == {"waiting": 1, "computing": 0}
        running.torchserve.go.set()
        assert [(await answer(connection))[0] for connection in waits] == [200, 200]
        assert running.torchserve.seen == [b"wait"] * 2

    gate(check)


def test_nobody_computes_for_a_client_that_hung_up() -> None:
    async def check(running: Running) -> None:
        for count in (1, 2):
            await running.open(POST + b"Content-Length: 4\r\n\r\nwait")
            await running.until(lambda count=count: len(running.torchserve.seen) == count)
        _, writer = await running.open(POST + b"Content-Length: 5\r\n\r\nnever")
        await running.until(lambda: b"vla_gate_waiting 1\n" in running.hop.metrics())
        writer.close()
        await running.until(lambda: running.hop.counters.abandoned["waiting"] == 1)
        assert b"vla_gate_waiting 0\n" in running.hop.metrics()
        running.writers[0].close()
        await running.until(lambda: running.hop.counters.abandoned["computing"] == 1)
        assert b"vla_gate_computing 2\n" in running.hop.metrics()  # nothing can be taken back from TorchServe
        running.torchserve.go.set()
        await running.until(lambda: b"vla_gate_computing 0\n" in running.hop.metrics())
        assert running.torchserve.seen == [b"wait"] * 2

    gate(check)


def test_clients_take_turns_and_the_longest_line_is_refused() -> None:
    def of(name: bytes, body: bytes) -> bytes:
        return POST + b"X-Client: %b\r\nContent-Length: %d\r\n\r\n%b" % (name, len(body), body)

    async def check(running: Running) -> None:
        seen = running.torchserve.seen
        many = [await running.open(of(b"a", b"wait first"))]
        await running.until(lambda: len(seen) == 1)
        for count, body in enumerate((b"wait a2", b"wait a3", b"wait a4"), 1):
            many.append(await running.open(of(b"a", body)))
            await running.until(lambda count=count: b"vla_gate_waiting %d\n" % count in running.hop.metrics())
        # The queue is full: one more of the same client is refused, another's takes the last place.
        status, headers, said = await running.ask(of(b"a", b"wait a5"))
        assert (status, error(said)[0], headers["retry-after"]) == (429, "overloaded", "1")
        other = await running.open(of(b"b", b"wait b1"))
        assert (await answer(many[3]))[0] == 429
        running.torchserve.go.set()
        assert [(await answer(connection))[0] for connection in (*many[:3], other)] == [200] * 4
        assert seen == [b"wait first", b"wait a2", b"wait b1", b"wait a3"]
        assert running.hop.counters.refusals["overloaded"] == 2

    gate(check, Room(batches=1, largest=1, waiting=3))


@pytest.mark.parametrize(
    ("batch", "workers", "queue", "joined", "room"),
    [
        # TorchServe makes the batches, and has two a worker.
        (4, 1, 16, 0, Room(8, 1, 12)),
        (4, 2, 16, 0, Room(16, 1, 8)),
        (4, 1, 2, 0, Room(6, 1, 1)),
        (1, 1, 0, 0, Room(1, 1, 1)),
        (8, 1, 8, 0, Room(16, 1, 1)),
        # The gate makes them, and a worker has one.
        (1, 1, 16, 4, Room(1, 4, 16)),
        (1, 2, 16, 4, Room(2, 4, 16)),
    ],
)
def test_room_by_who_makes_the_batches(batch: int, workers: int, queue: int, joined: int, room: Room) -> None:
    assert Room.of(batch, workers, queue, joined) == room


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", None),
        (b"POST /", "slow_request"),
        (POST + b"Content-Length: 5\r\n\r\nx", "slow_request"),
        (POST + b"Content-Length: 4\r\n\r\nwait", "timeout"),
    ],
)
def test_each_phase_has_its_time(sent: bytes, code: str | None) -> None:
    async def check(running: Running) -> None:
        connection = await running.open(sent)
        (client,) = await clients(running)
        phase = {None: "idle", "timeout": "answer"}.get(code, "body" if b"Length" in sent else "head")
        await running.until(lambda: client.phase == phase)
        limit_s = {"idle": 75, "head": 5, "body": 10, "answer": 60}[phase]
        assert client.until_s == pytest.approx(running.hop.loop.time() + limit_s, abs=1)
        running.hop.sweep()
        assert client.phase == phase  # not over yet
        client.until_s = running.hop.loop.time() - 0.001
        running.hop.sweep()
        if code is None:
            assert await closed(connection)
            return
        status, headers, said = await answer(connection)
        assert (status, error(said)[0]) == ({"slow_request": 408, "timeout": 504}[code], code)
        assert headers.get("connection") == (None if code == "timeout" else "close")

    gate(check)


async def clients(running: Running, count: int = 1) -> list[Client]:
    found = running.hop._clients  # noqa: SLF001
    await running.until(lambda: len(found) == count)
    return sorted(
        (client for client in found if isinstance(client, Client)), key=lambda client: client.since_s
    )


def test_each_policys_workers_are_shown() -> None:
    async def check(running: Running) -> None:
        running.hop.show_workers({"vla": Workers(1, 2), "other": Workers(2, 2)})
        said = running.hop.metrics().decode()
        for line in (
            "vla_gate_ready 1",
            "# TYPE vla_gate_workers_ready gauge",
            'vla_gate_workers_ready{policy="vla"} 1',
            'vla_gate_workers_wanted{policy="vla"} 2',
            'vla_gate_workers_ready{policy="other"} 2',
        ):
            assert f"{line}\n" in said
        running.hop.show_workers({"vla": Workers(0, 2), "other": Workers(2, 2)})
        assert (await running.ask(HEALTH))[0] == 503
        assert b"vla_gate_ready 0\n" in running.hop.metrics()

    gate(check)


def test_a_drain_ends_idle_connections_and_answers_the_others() -> None:
    async def check(running: Running) -> None:
        running.hop.ready = True
        idle, busy = await running.open(), await running.open(POST + b"Content-Length: 4\r\n\r\nwait")
        await running.until(lambda: len(running.torchserve.seen) == 1)
        running.hop.drain()
        with contextlib.suppress(ConnectionError):
            assert await closed(idle)
        assert not running.hop.ready
        assert not running.hop.drained.is_set()
        running.torchserve.go.set()
        status, headers, _ = await answer(busy)
        assert (status, headers["connection"]) == (200, "close")
        async with asyncio.timeout(5):
            await running.hop.drained.wait()

    gate(check)


def test_a_drain_without_connections_is_over_at_once() -> None:
    async def check(running: Running) -> None:
        running.hop.drain()
        assert running.hop.drained.is_set()

    gate(check)


def test_of_too_many_connections_the_oldest_unfinished_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gate.hop.MOST_CONNECTIONS", 2)

    async def check(running: Running) -> None:
        busy = await running.open(POST + b"Content-Length: 4\r\n\r\nwait")
        await running.until(lambda: len(running.torchserve.seen) == 1)
        oldest = await running.open(b"POST /")
        (_, client) = await clients(running, 2)
        await running.until(lambda: client.phase == "head")
        newest = await running.open()
        assert (await answer(oldest))[0] == 408
        running.torchserve.go.set()
        assert (await answer(busy))[0] == 200
        newest[1].write(GOOD)
        assert (await answer(newest))[0] == 200

    gate(check)


def test_unfinished_requests_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gate.hop.MOST_BUFFERED", 1000)

    async def check(running: Running) -> None:
        first = await running.open(POST + b"Content-Length: 2000\r\n\r\n" + b"x" * 600)
        await asyncio.sleep(0.01)  # more than the loop's clock tells apart
        second = await running.open(POST + CHUNKED + b"7d0\r\n" + b"x" * 400)
        both = await clients(running, 2)
        await running.until(lambda: sum(client.buffered for client in both) == 1000)
        running.hop.sweep()
        assert {client.phase for client in both} == {"body"}
        second[1].write(b"x")
        await running.until(lambda: sum(client.buffered for client in both) == 1001)
        running.hop.sweep()
        assert sorted(client.phase for client in both) == ["body", "closing"]
        assert (await answer(first))[0] == 408

    gate(check)


def test_what_comes_ahead_of_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "AHEAD", 100)

    async def check(running: Running) -> None:
        connection = await running.open(POST + b"Content-Length: 4\r\n\r\nwait")
        (client,) = await clients(running)
        await running.until(lambda: client.phase == "answer")
        connection[1].write(GOOD * 2)
        await running.until(lambda: client.buffered == 2 * len(GOOD))
        transport = client._transport  # noqa: SLF001
        assert transport is not None
        assert not transport.is_reading()
        running.torchserve.go.set()
        assert [(await answer(connection))[0] for _ in range(3)] == [200] * 3
        assert transport.is_reading()

    gate(check)


def test_the_metrics_are_torchserves_and_the_gates() -> None:
    async def check(running: Running) -> None:
        scrape = Scrape(running.hop.upstream._port, lambda: b"own 1\n")  # noqa: SLF001
        server = await asyncio.start_server(scrape.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        said = []
        for line in (b"GET /metrics HTTP/1.1", b"GET /other HTTP/1.1", b"POST /metrics HTTP/1.1"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(line + b"\r\nHost: x\r\n\r\n")
            said.append(await reader.read())
            writer.close()
        scrape.close()
        server.close()
        assert said[0].startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
        assert said[0].endswith(b"\r\n\r\nown 1\n")
        assert [answer.split(b" ")[1] for answer in said] == [b"200", b"404", b"404"]
        assert running.torchserve.seen == [b"/metrics"]

    gate(check)


def test_a_model_without_a_room_is_torchserves_to_refuse() -> None:
    async def check(running: Running) -> None:
        assert (await running.ask(GOOD.replace(b"/vla", b"/other")))[0] == 200

        got: list[Answer | Refusal | None] = []
        running.hop.own("/nothing", got.append)
        assert isinstance(got[0], Refusal)

    gate(check)

"""The robot's client through the real proxy: by key, by mutual TLS, and what it says outside."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from policy_server import PICTURE
from test_proxy import make_certificates

from bench.faults.processes import Running, proxy
from vla_client import AccessDenied, AsyncPolicy, Observation, PolicyUnavailable, RemotePolicy, RequestRefused

OBSERVATION = Observation(PICTURE, "go")
TIMEOUT_S = 10.0


def test_a_key_lets_the_robot_in(lasting_replica: Running, folder: Path) -> None:
    keys = folder / "client_keys"
    keys.write_text("k-1 robot-1\n")
    with proxy(folder, lasting_replica.port, AUTH="keys", KEYS_FILE=keys) as running:
        with RemotePolicy(running.url, TIMEOUT_S, api_key="k-1") as policy:
            chunk = policy.infer(OBSERVATION)
        with RemotePolicy(running.url, TIMEOUT_S, headers={"Authorization": "Bearer k-1"}) as policy:
            policy.infer(OBSERVATION)
        with RemotePolicy(running.url, TIMEOUT_S) as policy, pytest.raises(AccessDenied) as caught:
            policy.infer(OBSERVATION)
        with (
            RemotePolicy(running.url, TIMEOUT_S, "other", api_key="k-1") as policy,
            pytest.raises(RequestRefused, match=r"^404 not_found: "),
        ):
            policy.infer(OBSERVATION)

    np.testing.assert_array_equal(chunk.actions, np.array([[0.5, -0.25]], np.float32))
    assert str(caught.value).startswith("401 unauthorized: send your API key as `X-API-Key: ...`")
    assert caught.value.request_id is not None


def test_mutual_tls_lets_the_robot_in(lasting_replica: Running, folder: Path) -> None:
    tls = folder / "client_certificates"
    make_certificates(tls)
    own = {"ca": tls / "ca.crt", "cert": (tls / "robot.crt", tls / "robot.key")}
    with proxy(folder, lasting_replica.port, AUTH="mtls", TLS_FOLDER=tls) as running:
        url = f"https://localhost:{running.port}"

        async def ask() -> int:
            async with AsyncPolicy(RemotePolicy(url, TIMEOUT_S, **own)) as policy:
                return len(await asyncio.gather(*(policy.infer(OBSERVATION) for _ in range(4))))

        assert asyncio.run(ask()) == 4
        with (
            RemotePolicy(url, TIMEOUT_S, ca=tls / "ca.crt") as policy,
            pytest.raises(AccessDenied, match=r"^400 no_certificate: send a client certificate"),
        ):
            policy.infer(OBSERVATION)
        with (
            RemotePolicy(running.url, TIMEOUT_S) as policy,
            pytest.raises(AccessDenied, match=r"^400 tls_required: this port speaks TLS"),
        ):
            policy.infer(OBSERVATION)
        with (
            RemotePolicy(url, TIMEOUT_S) as policy,
            pytest.raises(PolicyUnavailable, match=r"^no TLS with .* is ca the authority"),
        ):
            policy.infer(OBSERVATION)

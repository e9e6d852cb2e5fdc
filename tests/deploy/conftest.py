"""What the tests of a deployment share: one replica that lasts, and the open proxy in front of it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from replicas import write_version

from archive.digest import digest
from bench.faults.processes import Running, proxy, replica

# Tests that need no nginx.
WITHOUT = {"test_images.py", "test_manifests.py", "test_sbom.py"}
LUA = Path("/usr/lib/nginx/modules/ngx_http_lua_module.so")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs nginx where it is not installed; images bring their own."""
    if LUA.exists():
        return
    missing = pytest.mark.skip(reason="nginx with its Lua module is not installed: scripts/nginx")
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here and item.path.name not in WITHOUT:
            item.add_marker(missing)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Where archives, settings and logs of this session lie: readable to nginx's workers, another user's.

    Not in pytest's own folder: every run of pytest closes that to other users, also of runs before it.
    """
    with tempfile.TemporaryDirectory(prefix="vla-deploy-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="session")
def archive(folder: Path) -> Path:
    return write_version(folder, "1.0")


@pytest.fixture(scope="session")
def lasting_replica(archive: Path, folder: Path) -> Iterator[Running]:
    """A replica that no test stops."""
    with replica(archive, folder) as running:
        yield running


@pytest.fixture(scope="session")
def meant(policy_archive: Path) -> Path:
    """The default policy's archive, its digest beside it."""
    policy_archive.with_name(policy_archive.name + ".sha256").write_text(digest(policy_archive))
    return policy_archive


@pytest.fixture(scope="session")
def policy_replica(meant: Path, folder: Path) -> Iterator[Running]:
    """A replica of the default policy, that no test stops."""
    with replica(meant, folder) as running:
        yield running


@pytest.fixture(scope="session")
def open_proxy(lasting_replica: Running, folder: Path) -> Iterator[Running]:
    """The proxy in front of it, without keys."""
    with proxy(folder, lasting_replica.port) as running:
        yield running

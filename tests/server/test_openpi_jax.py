"""openpi's JAX checkpoints, imported by one command: HTTP equals what openpi's JAX code computed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from golden.folders import TOKENIZER
from golden.over_http import check_answers, imported, together

from server.process import TorchServe

pytest.importorskip("tensorstore", reason="it is of the extra `jax`")
POLICIES = {
    "openpi_jax_pi0_libero": ("--robot", "libero_delta", "--format", "eager"),
    "openpi_jax_pi05_droid": ("--robot", "droid"),
}


def exported(name: str, folder: Path) -> Path:
    told = ("--margin", "20", "--tokenizer", TOKENIZER, "--horizon", 5, *POLICIES[name])
    return imported(name, "openpi", "names.json", folder, *told)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("openpi_jax")
    with ThreadPoolExecutor(2) as pool:
        archives = list(pool.map(lambda name: exported(name, folder), POLICIES))
    with together(archives) as server:
        yield server


@pytest.mark.parametrize("name", POLICIES)
def test_http_equals_openpis_jax_alone_and_in_a_batch(server: TorchServe, name: str) -> None:
    check_answers(server.url, name)

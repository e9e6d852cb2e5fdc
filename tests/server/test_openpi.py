"""Policies of the real openpi, of JAX and of PyTorch, by one command: HTTP equals what it computed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from golden.folders import TOKENIZER
from golden.over_http import check_answers, imported, together

from server.process import TorchServe

# Policies, and what is said of them besides; tests/unit/test_foreign_openpi.py has the other robots.
POLICIES = {
    "openpi_pi0_aloha": ("--robot", "aloha", "--format", "eager"),
    "openpi_pi05_droid": ("--robot", "droid"),
    "openpi_jax_pi0_libero": ("--robot", "libero_delta", "--format", "eager", "--horizon", "5"),
    "openpi_jax_pi05_droid": ("--robot", "droid", "--horizon", "5"),
}


def exported(name: str, folder: Path) -> Path:
    told = ("--margin", "20", "--tokenizer", TOKENIZER, *POLICIES[name])
    return imported(name, "openpi", "names.json", folder, *told)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("openpi")
    with together(exported(name, folder) for name in POLICIES) as server:
        yield server


@pytest.mark.parametrize("name", POLICIES)
def test_http_equals_openpi_alone_and_in_a_batch(server: TorchServe, name: str) -> None:
    check_answers(server.url, name)

"""Policies read in bfloat16 from the start: HTTP answers are the library's, but for 8 bits of rounding."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from golden.folders import SMOLVLM, TOKENIZER
from golden.over_http import check_answers, imported, together

from archive.read import unpack
from server.process import TorchServe

# Allowed difference from the library's float32 actions, as a share of the training data's range: bfloat16
# rounds to 0.4 %, and ten steps of a tiny flow add up what a product loses.
ALLOWED = 0.05
OPENPI = ("openpi", "names.json", "--margin", "20", "--tokenizer", TOKENIZER, "--robot")
POLICIES: dict[str, tuple[object, ...]] = {
    "pi0": ("lerobot", "info.json", "--margin", "2", "--tokenizer", TOKENIZER),
    "openpi_pi0_aloha": (*OPENPI, "aloha"),
    "openpi_pi05_droid": (*OPENPI, "droid"),
    "smolvla": (
        *("lerobot", "info.json", "--margin", "2", "--tokenizer", SMOLVLM / "tokenizer.json"),
        *("--vlm", SMOLVLM / "config.json"),
    ),
}


def exported(name: str, folder: Path) -> Path:
    origin, names, *told = POLICIES[name]
    return imported(name, str(origin), str(names), folder, *told, "--precision", "bfloat16")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bfloat16")
    return {name: exported(name, folder) for name in POLICIES}


@pytest.fixture(scope="module")
def server(archives: dict[str, Path]) -> Iterator[TorchServe]:
    with together(archives.values()) as server:
        yield server


@pytest.mark.parametrize("name", POLICIES)
def test_http_equals_the_library_to_8_bits(server: TorchServe, name: str) -> None:
    check_answers(server.url, name, ALLOWED)


@pytest.mark.parametrize("name", POLICIES)
def test_every_matrix_in_the_archive_is_bfloat16(
    archives: dict[str, Path], name: str, tmp_path: Path
) -> None:
    module = torch.jit.load(str(unpack(archives[name], tmp_path) / "policy.ts"))

    kinds = {str(value.dtype) for value in module.state_dict().values() if value.ndim > 1}

    assert kinds == {"torch.bfloat16"}

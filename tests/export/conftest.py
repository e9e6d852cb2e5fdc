"""What the tests of export share: the tiny checkpoint, exported once in each format and precision."""

from functools import cache
from pathlib import Path

import pytest
from making import Exported

from export.export import Options, export
from vla_runtime.spec import Format, Precision


@pytest.fixture(scope="session")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`exported(format, precision)` returns the archive, made when it is first asked for."""

    @cache
    def made(format_: Format, precision: Precision) -> Path:
        path = tmp_path_factory.mktemp(f"{format_}_{precision}") / "vla.mar"
        export(Options(str(tiny_checkpoint), path, buckets=(1, 2, 4), format=format_, precision=precision))
        return path

    return made

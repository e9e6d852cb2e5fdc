"""`docs/contract.md` names every field, error and key that there is."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from vla_runtime import errors, spec
from vla_runtime.images import Limits

PAGE = (Path(__file__).parents[3] / "docs" / "contract.md").read_text()
NAMED = set(re.findall(r"`([^`\n]+)`", PAGE))
PARTS = [
    part
    for part in vars(spec).values()
    if isinstance(part, type) and issubclass(part, spec.Part) and part not in (spec.Part, spec.Platform)
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_key_of_the_spec_is_named(part: type[spec.Part]) -> None:
    keys = {field.encode_name for field in msgspec.structs.fields(part)}

    assert keys - NAMED == set()


def test_every_error_has_its_status() -> None:
    sent = set(errors.RequestError.__subclasses__()) - {errors.Later}
    kinds = {kind.code: kind.status for kind in sent}

    assert {
        code: int(status) for status, code in re.findall(r"^\| (\d{3}) \| `(\w+)`", PAGE, re.MULTILINE)
    } == kinds


def test_the_limits_are_the_defaults() -> None:
    written = re.search(r"^handler:\n(?:  .*\n)+", PAGE, re.MULTILINE)

    assert written is not None
    assert yaml.safe_load(written[0]) == {"handler": vars(Limits())}

"""What lets the robots in: written for the load generator's processes, and read by them."""

import stat
from pathlib import Path

import pytest

from loadtest.access import Access


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ca.crt").touch()
    access = Access(api_key="k-1", ca=Path("ca.crt"), header=("X-Site: lab", "Accept-Language:de"))

    file = access.write(tmp_path / "access.json")

    assert Access.read(file) == Access(**{**vars(access), "ca": tmp_path / "ca.crt"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert access.headers == {"X-Site": "lab", "Accept-Language": "de", "X-API-Key": "k-1"}


def test_key_comes_from_the_environment_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_API_KEY", "k-2")

    assert Access().headers == {"X-API-Key": "k-2"}
    assert Access(api_key="k-1").headers == {"X-API-Key": "k-1"}

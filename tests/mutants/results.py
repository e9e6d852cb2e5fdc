"""What became of the faults of each file, kept in build/mutants."""

import hashlib
import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from mutants.checkout import ROOT
from mutants.faults import Fault, faults

# Run in processes of their own, by tests with real servers that take seconds to minutes: not tried here.
PROGRAMS = ("__main__.py", "container.py", "with_parent.py")
KEPT = ROOT / "build" / "mutants"
# Faults that change nothing that a test could see, by file: a line of code, its changes, and why.
EQUAL = tomllib.loads((Path(__file__).parent / "equal.toml").read_text())


@dataclass
class Result:
    """What became of one file's faults."""

    path: str
    source: str
    drawn: list[Fault]
    # By the fault's key: whether it was noticed.
    noticed: dict[str, bool]

    @classmethod
    def of(cls, path: str, most: int) -> "Result":
        """Draw the faults of a file, and read what is known of them."""
        source = (ROOT / path).read_text()
        found = faults(source)
        drawn = [found[i] for i in sorted(random.Random(0).sample(range(len(found)), min(most, len(found))))]
        drawn = [fault for fault in drawn if fault.code != fault.change]  # `return None` where that stands
        result = cls(path, source, drawn, {})
        result.read()
        return result

    def read(self) -> None:
        """Read what is known of the file as it is now."""
        file = KEPT / f"{self.path}.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        same = known.get("sha256") == hashlib.sha256(self.source.encode()).hexdigest()
        self.noticed = known["noticed"] if same else {}

    def keep(self) -> None:
        """Write it down."""
        file = KEPT / f"{self.path}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(self.source.encode()).hexdigest()
        file.write_text(json.dumps({"sha256": digest, "noticed": self.noticed}, indent=1))

    def forget_missed(self) -> None:
        """Let those be tried again: there may be other tests."""
        self.noticed = {key: noticed for key, noticed in self.noticed.items() if noticed}
        self.keep()

    def equal(self) -> set[str]:
        """Return the keys of those drawn that change nothing."""
        known = {(entry["code"], change) for entry in EQUAL.get(self.path, []) for change in entry["changes"]}
        return {fault.key for fault in self.drawn if (fault.code, fault.change) in known}

    def missed(self) -> list[Fault]:
        """Return the faults that were tried and not noticed, and are not equal."""
        equal = self.equal()
        tried = [fault for fault in self.drawn if fault.key in self.noticed and fault.key not in equal]
        return [fault for fault in tried if not self.noticed[fault.key]]

    def counts(self) -> tuple[int, int, int, int]:
        """Count the faults tried, noticed, equal and missed."""
        tried = [fault.key for fault in self.drawn if fault.key in self.noticed]
        noticed, missed = sum(self.noticed[key] for key in tried), len(self.missed())
        return len(tried), noticed, len(tried) - noticed - missed, missed


def files(only: tuple[str, ...]) -> list[str]:
    """List the Python files among paths relative to the checkout."""
    found = [ROOT / path for path in only]
    listed = [file for path in found for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    tried = [file for file in listed if file.name not in PROGRAMS and faults(file.read_text())]
    return [str(file.relative_to(ROOT)) for file in tried]


def table(results: list[Result]) -> str:
    """Return one row a file, and the sum."""
    rows = [(f"`{result.path}`", len(faults(result.source)), *result.counts()) for result in results]
    sums = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    lines = [" | ".join(map(str, row)) for row in (*rows, ("all", *sums))]
    head = ["file | possible | put in | noticed | equal | missed", "--- | ---: | ---: | ---: | ---: | ---:"]
    share = f"{1 - sums[4] / max(sums[1], 1):.1%} are noticed or equal"
    return "\n".join([*(f"| {line} |" for line in (*head, *lines)), "", share])

"""Who may import whom (the boundaries that keep training out of the server and torch out of the robot)."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vla.models import ARCHITECTURES

ROOT = Path(__file__).parents[2]
# Our own packages, as they are imported.
OURS = {
    "vla_runtime",
    "vla_handler",
    "vla",
    "export",
    "archive",
    "server",
    "vla_client",
    "bench",
    "fuzz",
    "loadtest",
    "tests",
}
# What nothing else may import.
PROGRAMS = {"bench", "export", "fuzz", "loadtest", "tests"}
TORCH = {"torch", "torchvision", "transformers", "safetensors"}


@dataclass(frozen=True)
class Rule:
    """What the files of one part of the tree may import, besides the standard library and themselves."""

    # None: any third-party package.
    packages: set[str] | None
    # Own packages.
    ours: set[str]
    # Never, whatever `packages` says.
    never: frozenset[str] = frozenset({"ts"})


NO_TORCH = frozenset(TORCH | {"ts"})
RULES = {
    "handlers/vla_runtime": Rule(
        {"torch", "PIL", "simplejpeg", "tokenizers", "numpy", "msgspec", "safetensors"}, {"vla_runtime"}
    ),
    "handlers/vla_handler.py": Rule({"ts", "torch", "msgspec"}, {"vla_runtime"}, frozenset()),
    "vla": Rule(None, {"vla", "archive", "vla_runtime", "vla_client"}),
    "export": Rule(None, {"export", "archive", "vla", "vla_runtime"}),
    # What an `eager` archive carries.
    "export/foreign/pi0": Rule({"torch"}, set()),
    "archive": Rule(set(), {"archive"}, NO_TORCH),
    "server": Rule({"msgspec", "requests", "psutil", "uvloop", "yaml"}, {"server", "archive"}, NO_TORCH),
    "client/vla_client": Rule({"numpy", "PIL", "urllib3", "msgspec"}, {"vla_client"}, NO_TORCH),
    "loadtest": Rule(None, {"loadtest", "vla_client", "server", "archive"}, NO_TORCH),
    "fuzz": Rule(None, {"fuzz", "archive", "server", "vla_runtime"}),
    # Measures all of it, so it alone runs other programs: export, and the load test's corpus and reports.
    "bench": Rule(
        None, {"bench", "vla", "export", "archive", "loadtest", "server", "vla_client", "vla_runtime"}
    ),
}

# Parts of `vla` that a part of it may import besides itself; what is not here may import any of them. Models
# know nothing of the simulator, nor the simulator of them: labels and sizes are what passes between.
PARTS = {
    "vla/models": set(),
    "vla/tabletop": set(),
    "vla/workbench": {"tabletop"},
    "vla/checkpoint.py": {"models"},
    "vla/data": {"tabletop"},
    "vla/training": {"data", "models", "tabletop", "workbench", "checkpoint", "provenance"},
    "vla/evaluation": {"tabletop", "workbench", "provenance"},
    "vla/learning": {"checkpoint", "evaluation", "models", "provenance", "tabletop", "training"},
}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, top-level package) of every import in a file, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


def breaches(root: Path) -> list[str]:
    """Return `file:line imports package` for every import that breaks a rule."""
    found = []
    for place, rule in RULES.items():
        own = Path(place).name.removesuffix(".py")
        for file in [root / place] if place.endswith(".py") else sorted((root / place).rglob("*.py")):
            for line, name in imports(file) if file.is_file() else ():
                if not allowed(name, rule, own):
                    found.append(f"{file.relative_to(root)}:{line} imports {name}")
    return found


def allowed(name: str, rule: Rule, own: str) -> bool:
    if name in rule.never or (name in PROGRAMS and own not in {name, "bench"}):
        return False
    if name in OURS:
        return name in rule.ours
    return name in sys.stdlib_module_names or rule.packages is None or name in rule.packages


def test_boundaries_hold() -> None:
    assert breaches(ROOT) == []


def parts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, part) of every part of `vla` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1]) for name in names if name.startswith("vla."))


def breaches_inside(root: Path) -> list[str]:
    """Return `file:line imports vla.part` for every import inside `vla` that breaks a rule."""
    found = []
    for place, others in PARTS.items():
        own = Path(place).name.removesuffix(".py")
        for file in [root / place] if place.endswith(".py") else sorted((root / place).rglob("*.py")):
            for line, part in parts(file) if file.is_file() else ():
                if part != own and part not in others:
                    found.append(f"{file.relative_to(root)}:{line} imports vla.{part}")
    return found


def test_boundaries_inside_vla_hold() -> None:
    assert all((ROOT / place).exists() for place in PARTS)
    assert breaches_inside(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "part"),
    [
        ("vla/models/clip.py", "from vla.tabletop.commands import GOALS", "tabletop"),
        ("vla/models/parts/text.py", "def f():\n    from vla import tabletop", "tabletop"),
        ("vla/models/rt2.py", "import vla.checkpoint", "checkpoint"),
        ("vla/tabletop/labels.py", "from vla.models import Batch", "models"),
        ("vla/workbench/expert.py", "from vla.training.batches import Batches", "training"),
        ("vla/tabletop/expert.py", "from vla.workbench.commands import TASKS", "workbench"),
        ("vla/checkpoint.py", "from vla.training.settings import Settings", "training"),
        ("vla/training/batches.py", "import vla.evaluation.report", "evaluation"),
        ("vla/evaluation/report.py", "from vla.models import ARCHITECTURES", "models"),
    ],
)
def test_breach_inside_vla_is_found(tmp_path: Path, path: str, source: str, part: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(f"from vla.models import Sizes\n{source}\n" if "models/" in path else f"{source}\n")

    assert [line.split()[-1] for line in breaches_inside(tmp_path)] == [f"vla.{part}"]


def test_runtime_names_no_architecture() -> None:
    for file in (ROOT / "handlers").rglob("*.py"):
        words = set(re.findall(r"\w+", file.read_text().replace("np.clip(", "")))
        assert not words & set(ARCHITECTURES), file


def test_every_source_file_has_a_rule() -> None:
    ruled = tuple(str(ROOT / place) for place in RULES)
    folders = ("handlers", "vla", "export", "archive", "server", "client", "loadtest", "fuzz", "bench")
    files = [str(file) for folder in folders for file in (ROOT / folder).rglob("*.py")]

    assert len(files) > 20
    assert [file for file in files if not file.startswith(ruled)] == []


@pytest.mark.parametrize(
    ("path", "source", "breach"),
    [
        ("handlers/vla_runtime/policy.py", "import ts", "ts"),
        ("handlers/vla_runtime/policy.py", "import requests", "requests"),
        ("handlers/vla_runtime/policy.py", "def f():\n    from vla.models import x", "vla"),
        ("handlers/vla_handler.py", "from vla_client import Policy", "vla_client"),
        ("vla/models/clip.py", "from ts.context import Context", "ts"),
        ("vla/models/clip.py", "import export.trace", "export"),
        ("export/trace.py", "from server.process import TorchServe", "server"),
        ("archive/read.py", "import torch", "torch"),
        ("archive/read.py", "from server.errors import x", "server"),
        ("archive/read.py", "import msgspec", "msgspec"),
        ("server/process.py", "import torch", "torch"),
        ("client/vla_client/remote.py", "import torch.nn as nn", "torch"),
        ("client/vla_client/remote.py", "from vla_runtime.spec import PolicySpec", "vla_runtime"),
        ("loadtest/users.py", "import torch", "torch"),
        ("loadtest/run.py", "from bench.load import drive", "bench"),
        ("export/trace.py", "import bench.load", "bench"),
        ("server/process.py", "from tests.conftest import serve", "tests"),
    ],
)
def test_breach_is_found(tmp_path: Path, path: str, source: str, breach: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(f"import json\n{source}\n")

    assert breaches(tmp_path) == [f"{path}:{1 + source.count(chr(10)) + 1} imports {breach}"]


def test_allowed_imports_are_no_breach(tmp_path: Path) -> None:
    file = tmp_path / "export" / "trace.py"
    file.parent.mkdir()
    file.write_text(
        "import torch\nimport export.errors\nfrom vla.models import build\nfrom . import archive\n"
    )

    assert breaches(tmp_path) == []

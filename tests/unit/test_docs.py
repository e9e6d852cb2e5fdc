"""The pages: links lead somewhere, the verbs and modules that they name exist, README stays short."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
)
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")
VERBS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> str:
    """Return a page's code: blocks and spans."""
    text = page.read_text()
    blocks = re.findall(r"^```.*?$(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", text)
    return "\n".join([*blocks, *spans])


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(page.read_text()):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_that_a_page_names_exist(page: Path) -> None:
    text = code(page)
    verbs = set(re.findall(r"\bmake ([a-z][a-z-]*)\b(?!=)", text))
    modules = set(re.findall(r"python -m ([a-z_][\w.]*)", text)) - {"venv", "pip", "http.server"}
    missing = sorted(module for module in modules if not importable(module))
    assert (sorted(verbs - VERBS), missing) == ([], [])


def importable(module: str) -> bool:
    """Whether `python -m module` would find something to run."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return found is not None


def test_the_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n\n[x](missing.md) [y](#a-heading) [z](#none)\n\n```\nmake nothing\n```\n")
    assert LINK.findall(page.read_text()) == ["missing.md", "#a-heading", "#none"]
    assert anchors(page) == {"a-heading"}
    assert "make nothing" in code(page)
    assert not importable("no_such_module.at_all")

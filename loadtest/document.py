"""What every report is made of: written once, laid out as a page without network, as Markdown, as text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import msgspec

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1000px; margin: 2rem auto; }
body { padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; }
.verdict { padding: .75rem 1rem; border-left: 6px solid; margin: 1rem 0; font-size: 1.1rem; }
.verdict.kept { background: #edf7f1; } .verdict.missed { background: #fbefee; }
.verdict.not-judged { background: #f1f3f5; }
.kept { color: #2f855a; } .missed { color: #c0322b; } .not-judged { color: #66727f; }
.verdict p { color: #1c2733; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #e3e7eb; }
td { vertical-align: top; } td.kept, td.missed, td.not-judged { font-weight: 600; }
th { color: #66727f; font-weight: 500; }
.row { display: grid; grid-auto-flow: column; gap: 1rem; } svg { width: 100%; height: auto; }
@media (max-width: 700px) { .row { grid-auto-flow: row; } }
"""
VERDICTS = ("kept", "missed", "not judged")


@dataclass(frozen=True)
class Table:
    """Rows under a head; a number is shown with two digits behind the point."""

    head: Sequence[str]
    rows: Iterable[Sequence[str | float]]

    @property
    def cells(self) -> list[list[str]]:
        """Every cell as text, the head first."""
        return [list(self.head), *([_shown(cell) for cell in row] for row in self.rows)]

    def text(self) -> str:
        """Return the table in columns."""
        cells = self.cells
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
        return "\n".join(line.rstrip() for line in lines)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        head, *rows = self.cells
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))

    def html(self) -> str:
        """Return the table as HTML; a verdict has its colour."""
        head, *rows = self.cells
        lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
        lines += ["".join(f"<td{_class(cell)}>{escape(cell)}</td>" for cell in row) for row in rows]
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


@dataclass(frozen=True)
class Verdict:
    """One sentence that stands out, and what is to be said of it."""

    verdict: str
    headline: str
    details: Sequence[str] = ()


@dataclass(frozen=True)
class Plots:
    """Plots side by side, SVG elements by their title; a page shows them, Markdown does not."""

    plots: dict[str, str]


# A text is a paragraph, or a heading where it begins with `## `.
Block = str | Table | Verdict | Plots


def write(path: Path, data: Any, title: str, blocks: Sequence[Block]) -> list[Path]:
    """Write a report as `path.json`, `path.md` and `path.html`, and return the three."""
    contents = {
        ".json": msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n",
        ".md": markdown(title, blocks),
        ".html": html(title, blocks),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_name(path.name + suffix) for suffix in contents]
    for file, content in zip(paths, contents.values(), strict=True):
        file.write_text(content)
    return paths


def markdown(title: str, blocks: Iterable[Block]) -> str:
    """Return the report as Markdown; without a title, as a part of another one."""
    texts = [f"# {title}" if title else "", *map(_markdown, blocks)]
    return "\n\n".join(text for text in texts if text) + "\n"


def html(title: str, blocks: Iterable[Block]) -> str:
    """Return the report as one HTML page: no script, no network, plots inside."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", *map(_html, blocks)])
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case str():
            return block
        case Table():
            return block.markdown()
        case Verdict():
            return "\n\n".join([f"**{block.headline}**", *block.details])
        case Plots():
            return ""


def _html(block: Block) -> str:
    match block:
        case str():
            return f"<h2>{escape(block[3:])}</h2>" if block.startswith("## ") else f"<p>{escape(block)}</p>"
        case Table():
            return block.html()
        case Verdict():
            details = "".join(f"<p>{escape(detail)}</p>" for detail in block.details)
            kind = block.verdict.replace(" ", "-")
            return f'<div class="verdict {kind}">{escape(block.headline)}{details}</div>'
        case Plots():
            plots = (f"<div><h2>{escape(name)}</h2>{plot}</div>" for name, plot in block.plots.items())
            return f'<div class="row">{"".join(plots)}</div>'


def _class(cell: str) -> str:
    return f' class="{cell.replace(" ", "-")}"' if cell in VERDICTS else ""


def _shown(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:.2f}" if abs(cell) < 100 and not isinstance(cell, int) else f"{cell:.0f}"

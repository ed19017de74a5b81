"""How the tests read the pages of the documentation: blocks, commands, tables, sections."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: ``language [no-run]``, its text, and the line it begins at."""

    page: Path
    info: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name under which the reader is told to save it."""
        found = re.match(r"# file: (\S+)\n", self.text)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    text = read(page)
    return [Block(page, m[1], m[2], text[: m.start()].count("\n") + 1) for m in FENCE.finditer(text)]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", read(page))


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """``(place, arguments)`` of every secateur line in a bash block."""
    for block in blocks(page):
        if block.info == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["secateur"]:
                    yield f"{block}: {line}", words[1:]


def table_rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the table whose first column is headed so; the first one in `text`."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            next(lines)
            break
    rows: list[list[str]] = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def section(page: Path, heading: str) -> str:
    """A section with its heading, up to the next one of the same level."""
    level = heading.partition(" ")[0]
    text = read(page)
    start = text.index(f"\n{heading}\n")
    end = re.compile(rf"^#{{1,{len(level)}}} ", re.MULTILINE).search(text, start + len(heading) + 2)
    return text[start : end.start() if end else len(text)]

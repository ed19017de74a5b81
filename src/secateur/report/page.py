"""The parts of a report as values: what a page says, apart from how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; the first column names the row.

    Args:
        caption: What the numbers are.
        head: One heading a column.
        rows: One cell a column, already formatted.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Panel:
    """One figure with what it shows and how to read it.

    Args:
        key: Unique in the page; the figure's id is ``fig-KEY``.
        title: A few words.
        finding: What this figure says about this run, one or two sentences.
        how: How to read it, one sentence.
        svg: The drawing, or None where there is nothing to draw.
        absent: Why there is nothing to draw.
        table: The same numbers as text.
    """

    key: str
    title: str
    finding: str = ""
    how: str = ""
    svg: Markup | None = None
    absent: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    intro: str
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Notice:
    """Something to know (``note``) or to act on (``warning``)."""

    level: Literal["warning", "note"]
    title: str
    text: str


@dataclass(frozen=True)
class Stat:
    """One big figure of the headline and the words that follow it."""

    value: str
    label: str


@dataclass(frozen=True)
class Facts:
    """A short list of names and values."""

    title: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Command:
    """A command to run next, and what it is good for."""

    text: str
    why: str


@dataclass(frozen=True)
class Page:
    """All that one report says.

    Args:
        title: Of the browser tab.
        kicker: The small line over the headline.
        headline: Read one after the other they are the headline sentence.
        lede: One paragraph below it.
        density: Fraction of prunable weights kept, drawn as a strip of 100 squares; None for no strip.
        notices: Shown before anything else.
        sections: In reading order.
        facts: Where the numbers come from.
        commands: What to do next.
    """

    title: str
    kicker: str
    headline: tuple[Stat, ...]
    lede: str
    density: float | None
    notices: tuple[Notice, ...]
    sections: tuple[Section, ...]
    facts: tuple[Facts, ...]
    commands: tuple[Command, ...]

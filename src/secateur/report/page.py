"""The parts of a report as values: what a page says, apart from how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; the first column names the row.

    Args:
        caption: What the numbers are.
        head: One heading a column.
        rows: One cell a column, already formatted; a row of a single cell is a heading over those below.
        marks: What stands out, by row and column, both from 0.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: Mapping[tuple[int, int], Literal["best", "above", "below"]] = field(default_factory=dict)


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
        wide: It takes both columns of the page; the drawing is `canvas.WIDE` then.
    """

    key: str
    title: str
    finding: str = ""
    how: str = ""
    svg: Markup | None = None
    absent: str = ""
    table: Table | None = None
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under one heading, then tables, then points: each a few words and the sentences on them."""

    title: str
    intro: str
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()
    points: tuple[tuple[str, str], ...] = ()


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
        lede: Below it; an empty line begins another paragraph.
        density: Fraction of prunable weights kept, drawn as a strip of 100 squares; None for no strip.
        notices: Shown before anything else.
        sections: In reading order.
        facts: Where the numbers come from.
        commands: What to do next.
        words: Words and their meanings, for those that this page alone uses.
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
    words: tuple[tuple[str, str], ...] = ()

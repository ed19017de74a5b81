"""A page as one HTML file that needs nothing else."""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from secateur.report.page import Page

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("sparsity", "the share of weights removed (set to zero); 90 % sparsity keeps one weight in ten"),
    ("density", "the share of weights kept: 1 − sparsity"),
    ("prunable weights", "those of convolutions and linear layers; biases and norms are never removed"),
    ("teacher, student", "the network that is imitated, and the one that is pruned"),
    ("criterion, score", "the rule that gives each weight a score; the highest scores are kept"),
    ("alpha", "how much a score listens to the labels (1) against the teacher (0)"),
    ("the cut", "setting all removed weights to zero at once"),
    (
        "BatchNorm re-estimation",
        "measuring the statistics of normalisation layers again after the cut; no training",
    ),
    ("recovery", "training on after the cut while removed weights stay zero"),
    ("KD", "knowledge distillation: in recovery the student also learns to give the teacher's answers"),
)
"""The words that a report uses, for someone who meets them for the first time."""


def render(page: Page) -> str:
    """`page` as a complete HTML document: styles and figures inside, no scripts, nothing loaded."""
    return _template().render(page=page, style=Markup(_read("style.css")), glossary=(*GLOSSARY, *page.words))


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_read("template.html.j2"))


def _read(name: str) -> str:
    return resources.files("secateur.report").joinpath(name).read_text(encoding="utf-8")

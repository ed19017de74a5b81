"""Patterns: the shape of what is removed together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unstructured:
    """Single weights, anywhere: no constraint on where the zeros stand."""

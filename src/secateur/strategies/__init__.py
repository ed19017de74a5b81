"""Strategies: how zeros come about over a training budget. One file a family; `carry_out` plays any."""

from __future__ import annotations

from secateur.strategies.base import AbstractStrategy, Problem, Round, TrainAside
from secateur.strategies.colt import Colt
from secateur.strategies.driver import Outcome, RoundStore, carry_out
from secateur.strategies.dynamic import SET, RigL
from secateur.strategies.entropy import EntropyGuided
from secateur.strategies.gradual import Gradual
from secateur.strategies.imp import IterativeMagnitude
from secateur.strategies.one_shot import Dense, OneShot

__all__ = [
    "SET",
    "STRATEGIES",
    "AbstractStrategy",
    "Colt",
    "Dense",
    "EntropyGuided",
    "Gradual",
    "IterativeMagnitude",
    "OneShot",
    "Outcome",
    "Problem",
    "RigL",
    "Round",
    "RoundStore",
    "TrainAside",
    "carry_out",
]

STRATEGIES: dict[str, type[AbstractStrategy]] = {
    "one-shot": OneShot,
    "dense": Dense,
    "imp": IterativeMagnitude,
    "gradual": Gradual,
    "rigl": RigL,
    "set": SET,
    "egp": EntropyGuided,
    "colt": Colt,
}
"""Strategies by the name they have in a suite."""

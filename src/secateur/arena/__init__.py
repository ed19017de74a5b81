"""The arena: every method under one budget, as suites of cells that can be stopped, spread and merged."""

from secateur.arena.cells import Cell, plan
from secateur.arena.collect import collect, merge
from secateur.arena.folder import SuiteFolder
from secateur.arena.grid import run_in_parallel, run_suite
from secateur.arena.suite import Method, Suite, load_suite, narrowed, suite_names

__all__ = [
    "Cell",
    "Method",
    "Suite",
    "SuiteFolder",
    "collect",
    "load_suite",
    "merge",
    "narrowed",
    "plan",
    "run_in_parallel",
    "run_suite",
    "suite_names",
]

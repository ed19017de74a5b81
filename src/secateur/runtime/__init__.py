"""The engine for sparse networks: compile a model to a plan, save it, load it, run it.

Loading and running need NumPy and no torch; only `compile` imports it. `docs/plan.md` specifies the
file, `docs/runtime.md` tells how the engine works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.runtime.engine import Engine, load
from secateur.runtime.plan import Layer, Plan, read_plan

if TYPE_CHECKING:
    from secateur.runtime.compiler import compile_model as compile  # noqa: A004  the name in the contract

__all__ = ["Engine", "Layer", "Plan", "compile", "load", "read_plan"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  a function; its type is declared above
    if name == "compile":
        from secateur.runtime.compiler import compile_model

        return compile_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

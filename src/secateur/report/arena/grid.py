"""A suite as a grid that can be asked: accuracies by method, sparsity and seed, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from secateur.report.arena.schema import FAMILIES, STAGES
from secateur.statistics import Estimate, estimate, paired_difference

Cell = Mapping[str, Any]

REFERENCE = "magnitude"
"""Key of the method that all others are held against; without it, the first of the suite."""
_SPOTLIGHT = 0.9
_APART = ("ablation", "control")


@dataclass(frozen=True)
class Method:
    """One way to prune, as the suite names it.

    Args:
        key: In the suite.
        label: For the reader.
        family: A key of `FAMILIES`.
        of: What a control is held against; None for the reference.
        expect: Where a control should come out, one of `EXPECTATIONS`.
        shows: What a control should show, in the words of the suite.
    """

    key: str
    label: str
    family: str
    of: str | None = None
    expect: str | None = None
    shows: str | None = None


@dataclass(frozen=True)
class Grid:
    """The finished cells of a suite.

    Args:
        content: As `secateur.report.arena.schema.read_suite` returns it.
    """

    content: Mapping[str, Any]

    @cached_property
    def suite(self) -> Mapping[str, Any]:
        """The resolved suite."""
        return self.content["suite"]

    @cached_property
    def cells(self) -> Sequence[Cell]:
        """Finished cells, in the order of the file."""
        return self.content["cells"]

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """All methods, by family and within it in the order of the suite."""
        found = [
            Method(key, about["label"], about["family"], *(about.get(k) for k in ("of", "expect", "shows")))
            for key, about in self.suite["methods"].items()
        ]
        order = list(FAMILIES)
        return tuple(sorted(found, key=lambda method: order.index(method.family)))

    @cached_property
    def competitors(self) -> tuple[Method, ...]:
        """Methods that stand for themselves and have a finished cell: no controls, no ablations."""
        return tuple(m for m in self.methods if m.family not in _APART and self._by_method.get(m.key))

    @cached_property
    def reference(self) -> Method:
        """The method that all others are held against, whether or not it has a finished cell."""
        first: str = next(iter(self.suite["methods"]))
        return self.method(REFERENCE if REFERENCE in self.suite["methods"] else first)

    @cached_property
    def dense(self) -> tuple[float, ...]:
        """Accuracy before the cut, of the cells of competitors that have it."""
        found = [cell["accuracy"]["dense"] for m in self.competitors for cell in self._by_method[m.key]]
        return tuple(accuracy for accuracy in found if accuracy is not None)

    def method(self, key: str) -> Method:
        """The method under a key of the suite."""
        return next(method for method in self.methods if method.key == key)

    @cached_property
    def _by_method(self) -> Mapping[str, Sequence[Cell]]:
        return {key: [c for c in self.cells if c["method"] == key] for key in self.suite["methods"]}

    def cells_of(self, key: str, sparsity: float | None = None) -> Sequence[Cell]:
        """Finished cells of a method, at one sparsity or at all."""
        return [c for c in self._by_method[key] if sparsity is None or _asked(c) == sparsity]

    @cached_property
    def sparsities(self) -> tuple[float, ...]:
        """Sparsities that a competitor was cut to, rising; those of all cells where none has one."""
        keys = {method.key for method in self.competitors} or set(self.suite["methods"])
        return tuple(sorted({_asked(cell) for cell in self.cells if cell["method"] in keys}))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the finished cells, rising."""
        return tuple(sorted({cell["seed"] for cell in self.cells}))

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """Stages that some cell was run to, the furthest first; one that changed nothing is none."""
        found = {stage: [accuracy_at(cell, stage) for cell in self.cells] for stage in STAGES}
        if found["pruned"] == found["cut"]:
            del found["pruned"]
        return tuple(s for s, accuracies in found.items() if any(a is not None for a in accuracies))

    @cached_property
    def final(self) -> str:
        """The stage that decides; ``cut`` where no accuracy was measured at all."""
        return self.stages[0] if self.stages else "cut"

    @cached_property
    def spotlight(self) -> float:
        """The sparsity to look at where only one can be: of those most methods reach, nearest to 0.9."""

        def merit(sparsity: float) -> tuple[int, float]:
            reached = sum(bool(self.accuracies(m.key, self.final, sparsity)) for m in self.competitors)
            return reached, -abs(sparsity - _SPOTLIGHT)

        return max(self.sparsities, key=merit)

    def accuracies(self, key: str, stage: str, sparsity: float) -> dict[int, float]:
        """Accuracy by seed, of the cells that have it."""
        found = {cell["seed"]: accuracy_at(cell, stage) for cell in self.cells_of(key, sparsity)}
        return {seed: accuracy for seed, accuracy in sorted(found.items()) if accuracy is not None}

    def accuracy(self, key: str, stage: str, sparsity: float) -> Estimate | None:
        """Mean and spread over the seeds; None without a finished cell."""
        found = self.accuracies(key, stage, sparsity)
        return estimate(list(found.values())) if found else None

    def difference(self, key: str, other: str, stage: str, sparsity: float) -> Estimate | None:
        """`key` − `other` at one sparsity, paired by seed; None without a pair."""
        return paired_difference(*(self.accuracies(name, stage, sparsity) for name in (key, other)))

    def overall_difference(self, key: str, other: str, stage: str) -> Estimate | None:
        """`key` − `other`, averaged over the sparsities first, so that a seed counts once.

        Cells of one seed share its data order and are no independent repeats, however many sparsities
        there are. Only seeds that have a pair at every sparsity at which there is any pair are counted.
        """
        pairs = [
            [self.accuracies(name, stage, sparsity) for name in (key, other)] for sparsity in self.sparsities
        ]
        shared = [{seed: a[seed] - b[seed] for seed in a if seed in b} for a, b in pairs]
        shared = [by_seed for by_seed in shared if by_seed]
        complete = [seed for seed in self.seeds if shared and all(seed in by_seed for by_seed in shared)]
        if not complete:
            return None
        return estimate([sum(by_seed[seed] for by_seed in shared) / len(shared) for seed in complete])

    def common(self, what: str) -> list[Any]:
        """The different values of one key of the cells, each once; a single one is common to all."""
        distinct: list[Any] = []
        for cell in self.cells:
            if cell[what] not in distinct:
                distinct.append(cell[what])
        return distinct


def accuracy_at(cell: Cell, stage: str) -> float | None:
    """Accuracy of a cell at a stage, where it was measured.

    ``pruned`` is what `secateur.prune` would hand to recovery: BatchNorm is re-estimated, but not after a cut
    that trained or solved for the kept weights, which has left the statistics right: the rule of
    `secateur.cutting.moves_weights`, read from what a cell says of its method.
    """
    found = cell["accuracy"]
    if stage != "pruned":
        return found[stage]
    about = cell["about"]
    moved = (about.get("strategy") or {}).get("recovery") or (about.get("criterion") or {}).get(
        "update_weights"
    )
    return found["cut"] if moved or found["batchnorm"] is None else found["batchnorm"]


def _asked(cell: Cell) -> float:
    return cell["sparsity"]["asked"]

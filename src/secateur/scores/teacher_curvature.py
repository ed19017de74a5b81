"""Second-order scores of the teacher's loss, and the kept weights that go with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from secateur.counts import check_number, check_whole, n_prune
from secateur.errors import InvalidArgument, ScoreError
from secateur.inputs import Inputs, filled, joined, tensors_of
from secateur.kinds import check_kind
from secateur.losses import check_finite, check_outputs, kd_loss, logits_for
from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs, Solution, SolvingScores, preserving
from secateur.scores.block_curvature import BlockQuadratic, add_outer
from secateur.scores.functional import Functional, gradients_of, sample_by_sample, samples_at_once
from secateur.scores.gauss_newton import Quadratic
from secateur.scores.teacher_fisher import draw_classes

_DAMPINGS = (1.0, 10.0, 100.0, 1e3, 1e4)
"""What is tried, in units of the mean curvature of a weight."""
_PROBE = 0.2
"""Fraction of the weights that are there which a trial cut removes."""


@dataclass(frozen=True)
class TeacherCurvature(AbstractCriterion):
    """What removing a weight costs in the teacher's loss to second order, all others free to adapt.

    Optimal brain surgeon (Hassibi 1993) over all tensors at once, with the distillation loss
    ``L = T²·KL(softmax(z_T/T) ‖ softmax(z_S/T))`` in place of the task's: ``S_w = w*²/2 / [H⁻¹]_ww``,
    ``w* = w − H⁻¹g`` the minimum of the quadratic model. ``H = λI + GᵀG``, with a row of G for each
    calibration input: the gradient of ``T·CE(z_S/T, ŷ)``, ŷ drawn from softmax(z_S/T). In expectation ``GᵀG``
    is ``JᵀC_TJ``, the Gauss–Newton matrix of L, which is its Hessian where student and teacher agree. T > 1
    is what gives a confident network curvature at all. No labels are needed.

    With rows over all tensors (`block=None`) ``λ·[H⁻¹]_ww = 1 − h_w``, and the h_w sum to at most the number
    of rows: with far fewer rows than weights S is ``λw*²/2`` but for a few, and ranks almost as plain
    magnitude where w* is near w. The curvature is then in the solve; `block` puts it into the ranking.

    The scores can say what the kept weights should become (`SolvingScores`), which `secateur.cut` asks for,
    best in stages, each with a new model. Neighbours: WoodFisher (https://arxiv.org/abs/2004.14340), whose
    inverse is of blocks and whose gradients are of labels; CHITA (https://arxiv.org/abs/2302.14623).

    Attributes:
        teacher: A frozen network over the same inputs and classes, such as a copy of the student.
        temperature: T > 0.
        draw: Where ŷ comes from: student, teacher, or exact: all classes, weighted by their probability,
            which takes a row a class and input, so no more than `rows` // classes inputs, spread evenly over
            all of them. Draws from the teacher do not have mean 0: a row of b inputs has b times the square
            of that mean.
        linear: Whether the slope of L takes part, or the student counts as being at a minimum.
        damping: λ > 0 in units of the mean diagonal of GᵀG. None chooses from the data: the model is made
            from every other calibration input, and the λ taken whose trial cut costs least on the rest.
        rows: Most rows, ≥ 1. With more inputs than that a row is of several inputs.
        block: None for curvature over all tensors at once. A number ≥ 1 is for nets with many weights: H
            between that many consecutive weights of a tensor, and 0 elsewhere (as WoodFisher), from any
            number of rows, as none is kept.
        memory_gb: Most memory in 10⁹ bytes of the rows, whose number it lowers, or of the blocks.
        update_weights: False gives scores alone.
        seed: Of the draws.

    Raises:
        InvalidArgument: for a number out of range or an unknown name.
    """

    teacher: nn.Module
    temperature: float = 4.0
    draw: Literal["student", "teacher", "exact"] = "student"
    linear: bool = True
    damping: float | None = None
    rows: int = 1024
    block: int | None = None
    memory_gb: float = 4.0
    update_weights: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_kind("teacher", self.teacher, nn.Module, "a trained torch.nn.Module")
        check_number("temperature", self.temperature, above_zero=True)
        if self.draw not in ("student", "teacher", "exact"):
            raise InvalidArgument(f"draw must be student, teacher or exact, got {self.draw!r}.")
        for name, number in (("damping", self.damping), ("memory_gb", self.memory_gb)):
            if number is not None:
                check_number(name, number, above_zero=True)
        for name, number in (("rows", self.rows), ("block", self.block)):
            if number is not None:
                check_whole(name, number, least=1)

    def __call__(self, inputs: ScoreInputs) -> Named:
        """`SolvingScores` from batches with or without labels, or plain scores without `update_weights`.

        Raises:
            ScoreError: if teacher and student outputs cannot be compared or are not logits of shape
                (batch, classes), or if a gradient is not finite or all are 0.
        """
        network = Functional.of(inputs.model)
        x, taught = self._gather(inputs)
        halves = (x[::2], taught[::2], x[1::2], taught[1::2])
        made, held = (halves[:2], halves[2:]) if self.damping is None and len(x) > 1 else ((x, taught),) * 2
        model = self._model(network, inputs, *made)

        def loss_at(weights: Named) -> float:
            own = {name: w.to(network.parameters[name].dtype) for name, w in weights.items()}
            with torch.no_grad(), preserving(inputs.model):
                loss = float(self._loss(network, own, *held))
            return loss if math.isfinite(loss) else math.inf  # never the least

        scores = model.saliency(self._choose_damping(model, loss_at))
        if not self.update_weights:
            return scores
        dampings = _DAMPINGS if self.damping is None else (self.damping,)
        return CurvatureScores(scores, model, [d * model.curvature for d in dampings], loss_at)

    def _choose_damping(self, model: _Model, loss_at: Callable[[Named], float]) -> float:
        """λ itself: the one given, or the best of a few in a trial cut."""
        if self.damping is not None:
            return self.damping * model.curvature
        tried: list[tuple[float, float]] = []
        for damping in (d * model.curvature for d in _DAMPINGS):
            masks = _without_lowest(model.saliency(damping))
            tried.append((loss_at(model.support(masks).solve(damping).weights), damping))
        return min(tried)[1]

    def _gather(self, inputs: ScoreInputs) -> tuple[Inputs, Tensor]:
        """All calibration inputs, and the teacher's logits for them."""
        xs: list[Inputs] = []
        taught: list[Tensor] = []
        teacher = self.teacher
        with preserving(teacher), torch.no_grad():
            for x, _ in inputs.stream(teacher):
                xs.append(x)
                taught.append(logits_for(teacher, x))
        return joined(xs), torch.cat(taught)

    def _loss(self, network: Functional, weights: Named, x: Inputs, taught: Tensor) -> Tensor:
        """L at `weights`, over all of `x`."""
        parts = zip(x.split(_CHUNK), taught.split(_CHUNK), strict=True)
        total = torch.zeros((), device=x.device)
        for x_part, taught_part in parts:
            logits = network(weights, x_part)
            check_outputs(logits, taught_part)
            loss = kd_loss(logits, taught_part.to(logits.dtype), temperature=self.temperature)
            total = total + loss * (len(x_part) / len(x))
        return total

    def _model(self, network: Functional, inputs: ScoreInputs, x: Inputs, taught: Tensor) -> _Model:
        """The quadratic model of L over `x`."""
        targets = {name: network.parameters[name] for name in inputs.targets}
        slope = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in targets.items()}
        if self.linear:
            parts = zip(x.split(_CHUNK), taught.split(_CHUNK), strict=True)
            for index, (x_part, taught_part) in enumerate(parts):
                loss = self._loss(network, {}, x_part, taught_part)
                check_finite("teacher's", loss, index)
                for name, gradient in gradients_of(loss, targets).items():
                    slope[name].add_(gradient, alpha=len(x_part) / len(x))
        weights = {n: w.detach() for n, w in targets.items()}
        if self.block is None:
            return Quadratic(self._rows(network, weights, x, taught), slope, inputs.weights)
        return BlockQuadratic(self._blocks(network, weights, x, taught), slope, inputs.weights)

    def _rows(
        self, network: Functional, targets: dict[str, Tensor], x: Inputs, taught: Tensor
    ) -> dict[str, Tensor]:
        """G by name, shape (R, numel)."""
        n_weights = sum(weight.numel() for weight in targets.values())
        most = min(self.rows, int(self.memory_gb * 1e9 / (4 * n_weights)))
        if most < 1:
            raise ScoreError(
                f"a row of {n_weights} gradients needs {4 * n_weights / 1e9:.3g} GB, "
                f"and memory_gb={self.memory_gb:g}. Raise it."
            )
        n_rows, gradients = self._gradients(network, targets, x, taught, most)
        found = {
            n: torch.empty((n_rows, w.numel()), dtype=torch.float32, device=x.device)
            for n, w in targets.items()
        }
        start = 0
        for some in gradients:
            for name, gradient in some.items():
                found[name][start : start + len(gradient)] = gradient
            start += len(next(iter(some.values())))
        return found

    def _blocks(
        self, network: Functional, targets: dict[str, Tensor], x: Inputs, taught: Tensor
    ) -> dict[str, Tensor]:
        """The blocks of GᵀG by name, shape (blocks, size, size)."""
        assert self.block is not None
        shapes: dict[str, tuple[int, int, int]] = {}
        for name, weight in targets.items():
            size = min(self.block, weight.numel())
            shapes[name] = (-(-weight.numel() // size), size, size)
        needed = 4 * sum(math.prod(shape) for shape in shapes.values()) / 1e9
        if needed > self.memory_gb:
            raise ScoreError(
                f"blocks of {self.block} weights need {needed:.3g} GB, and memory_gb={self.memory_gb:g}. "
                "Raise it, or lower block."
            )
        found = {n: torch.zeros(shape, dtype=torch.float32, device=x.device) for n, shape in shapes.items()}
        for some in self._gradients(network, targets, x, taught, self.rows)[1]:
            for name, gradient in some.items():
                add_outer(found[name], gradient)
        return found

    def _gradients(
        self, network: Functional, targets: dict[str, Tensor], x: Inputs, taught: Tensor, most: int
    ) -> tuple[int, Iterator[dict[str, Tensor]]]:
        """How many rows G has, at most `most`, and the rows by name, shape (some, numel)."""
        n_weights = sum(weight.numel() for weight in targets.values())
        groups, pulls = self._pulls(network, x, taught, most)

        def pulled(weights: dict[str, Tensor], group: tuple[Tensor, ...], pull: Tensor) -> Tensor:
            return (network(weights, filled(x, group)) * pull).sum()

        per_group = cast(
            "Callable[[dict[str, Tensor], tuple[Tensor, ...], Tensor], dict[str, Tensor]]",
            vmap(grad(pulled), in_dims=(None, 0, 0), randomness="different"),
        )
        chunk = samples_at_once(n_weights, of=pulls.shape[1])

        def rows() -> Iterator[dict[str, Tensor]]:
            for start in range(0, len(pulls), chunk):
                place = slice(start, start + chunk)
                # vmap differentiates by itself
                with torch.no_grad(), sample_by_sample(self, "Choose TeacherFisher or LayerReconstruction."):
                    gradients = per_group(targets, tuple(group[place] for group in groups), pulls[place])
                yield {name: gradient.flatten(1).float() for name, gradient in gradients.items()}

        return len(pulls), rows()

    def _pulls(
        self, network: Functional, x: Inputs, taught: Tensor, most: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs in groups, (R, b, …) each, and what the logits are multiplied with, (R, b, classes).

        The gradient of ``T·CE(z/T, ŷ)`` with respect to z is ``softmax(z/T) − e_ŷ``. It has mean 0 over draws
        from the student, so a group's gradient is divided by √b only.
        """
        with torch.no_grad():
            logits = torch.cat([network({}, part) for part in x.split(_CHUNK)])
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ScoreError(
                f"the curvature of the teacher's loss needs logits of shape (batch, classes), with 2 classes "
                f"or more, got {tuple(logits.shape)}."
            )
        n_classes = logits.shape[1]
        p = (logits / self.temperature).softmax(dim=1)
        classes = torch.eye(n_classes, device=x.device, dtype=p.dtype)
        if self.draw == "exact":
            n = min(len(x), max(1, most // n_classes))
            spread = torch.arange(n, device=x.device) * len(x) // n
            p, chosen = p[spread], tensors_of(x[spread])
            pulls = (p[:, None] - classes) * (p[:, :, None] / n).sqrt()
            groups = tuple(tensor.repeat_interleave(n_classes, dim=0)[:, None] for tensor in chosen)
            return groups, pulls.reshape(-1, 1, n_classes)
        q = logits if self.draw == "student" else taught
        generator = torch.Generator().manual_seed(self.seed)
        drawn = draw_classes(q / self.temperature, generator)
        size = -(-len(x) // most)
        n_rows = len(x) // size
        groups = tuple(tensor[: n_rows * size].unflatten(0, (n_rows, size)) for tensor in tensors_of(x))
        pulls = (p - classes[drawn])[: n_rows * size] / math.sqrt(n_rows * size)
        return groups, pulls.view(n_rows, size, n_classes)


class CurvatureScores(SolvingScores):
    """Scores of `TeacherCurvature`, with the model that they came from; its rows are kept as long as this."""

    def __init__(
        self, scores: Named, model: _Model, dampings: list[float], loss_at: Callable[[Named], float]
    ) -> None:
        super().__init__(scores)
        self._model = model
        self._dampings = dampings
        self._loss_at = loss_at

    def solve(self, masks: Named) -> Solution:
        """The kept weights by the damping, of those allowed, with the least loss on the held-out inputs."""
        support = self._model.support(masks)
        solutions = [support.solve(damping) for damping in self._dampings]
        if len(solutions) == 1:
            return solutions[0]
        return min(solutions, key=lambda solution: self._loss_at(solution.weights))


_Model: TypeAlias = Quadratic | BlockQuadratic

_CHUNK = 256
"""Inputs of a forward pass."""


def _without_lowest(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks without the lowest `_PROBE` of the scores above 0; ties stay."""
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    flat = flat[flat > 0].sort().values
    threshold = flat[n_prune(len(flat), _PROBE)] if len(flat) else flat.new_zeros(())
    return {name: (score >= threshold) & (score > 0) for name, score in scores.items()}

"""Scores by what a layer's outputs lose, and the kept weights that give these outputs back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from secateur.counts import check_number, check_whole
from secateur.errors import ScoreError
from secateur.inputs import Inputs, call
from secateur.kinds import check_kind
from secateur.naming import Named
from secateur.scores.base import AbstractCriterion, ScoreInputs, Solution, SolvingScores, preserving
from secateur.scores.functional import call_with, promoted, slots_of
from secateur.scores.least_squares import Moments
from secateur.scores.unfolding import Convolution, as_rows, input_of, layers_of
from secateur.targets import PRUNABLE_MODULES, TRANSPOSED, unwrap

_SAMPLES = 32
"""Inputs of a forward pass: the outputs of all layers of the teacher are held for so many."""
_ALIKE = 0.5
"""Cosine of two layers' outputs, in the mean over layers, from which on they have the same features."""


@dataclass(frozen=True)
class LayerReconstruction(AbstractCriterion):
    """What removing a weight costs in the outputs of its own layer, the others of its row free to adapt.

    For each layer ``E(W) = Σ‖y − Wx‖²`` over all inputs and positions: x is what the student's layer sees
    now, behind whatever an earlier stage has cut, and y what the *teacher's* layer of the same name puts
    out, less the student's bias. So a later layer also makes up for what the layers before it lost.
    ``S_w = w*²/[H⁻¹]_ww/Σ‖y − ȳ‖²`` with ``H = Σ xxᵀ + λI``, the saliency of optimal brain surgeon
    (Hassibi 1993) as a fraction of what there is to explain, which is what makes layers comparable.
    Forward passes only: no labels, no gradients, and no logits.

    The scores can say what the kept weights should become (`SolvingScores`): the least squares on their
    support, which `secateur.cut` asks for, best in stages. They predict no change of the teacher's loss.
    Neighbours: OBC (https://arxiv.org/abs/2208.11580) and SparseGPT (https://arxiv.org/abs/2301.00774), which
    remove one weight after the other, from every layer the same share, with y the layer's own outputs.

    The teacher's outputs are the target only if it has the student's prunable layers, all by name and
    shape, and if its layers say much the same: their outputs have a cosine of ½ or more with the student's,
    in the mean over layers. Otherwise (another architecture, or one trained from another start, whose
    features are others) y is ``Wx``: what the layer, as it is, makes of what it sees.

    Attributes:
        teacher: A frozen network over the same inputs: the student as it was before the cut.
        damping: λ > 0 in units of the mean diagonal of ``Σ xxᵀ``; it pulls solved weights to what they were.
        passes: In how many passes over the inputs, ≥ 1, the kept weights are solved: layers of a later one
            see what the solved layers before them give. 1 solves all from what scoring has seen; as many as
            there are layers, each behind all others. A pass costs as much as scoring does.
        update_weights: False gives scores alone.

    Raises:
        InvalidArgument: if a number is out of range.
    """

    teacher: nn.Module
    damping: float = 0.01
    passes: int = 1
    update_weights: bool = True

    def __post_init__(self) -> None:
        check_kind("teacher", self.teacher, nn.Module, "a trained torch.nn.Module")
        check_number("damping", self.damping, above_zero=True)
        check_whole("passes", self.passes, least=1)

    def __call__(self, inputs: ScoreInputs) -> Named:
        """`SolvingScores` from batches with or without labels, or plain scores without `update_weights`.

        Raises:
            ScoreError: naming a weight of a transposed convolution, or whose layer is never called; or if
                what a layer sees is not finite, or `damping` too small.
        """
        watch, moments = self._watched(inputs)
        weights = {name: _by_group(inputs.weights[name], moments[name]) for name in moments}
        scores: dict[str, Tensor] = {}
        for name, found in moments.items():
            try:
                score = found.saliency(weights[name], self.damping)
            except ArithmeticError as error:
                raise ScoreError(
                    f"the inputs of the layer of {name!r} are too much alike to invert their second moments "
                    f"with damping={self.damping:g}. Raise it; 0.01 is the default."
                ) from error
            scores[name] = score.float().view(inputs.weights[name].shape)
        scores = {name: scores[name] for name in inputs.targets}
        if not self.update_weights:
            return scores
        return ReconstructionScores(scores, weights, moments, watch, self.damping, self.passes)

    def _watched(self, inputs: ScoreInputs) -> tuple[_Watch, dict[str, Moments]]:
        """The least-squares problem of each weight, against the teacher's outputs where they are of use."""
        student, teacher = unwrap(inputs.model), unwrap(self.teacher)
        if student is teacher or _prunable(student) != _prunable(teacher):
            watch = _Watch(inputs, None, [x for x, _ in inputs.stream()])
            return watch, watch.moments()
        with preserving(teacher):
            watch = _Watch(inputs, teacher, [x for x, _ in inputs.stream(teacher)])
        moments = watch.moments()
        likeness = [found.cosine(_by_group(inputs.weights[name], found)) for name, found in moments.items()]
        if sum(likeness) < _ALIKE * len(likeness):
            watch = _Watch(inputs, None, watch.batches)
            moments = watch.moments()
        return watch, moments


class ReconstructionScores(SolvingScores):
    """Scores of `LayerReconstruction`, with the least-squares problems that they came from."""

    def __init__(
        self,
        scores: Named,
        weights: dict[str, Tensor],
        moments: dict[str, Moments],
        watch: _Watch,
        damping: float,
        passes: int,
    ) -> None:
        super().__init__(scores)
        self._weights = weights
        self._moments = moments
        self._watch = watch
        self._damping = damping
        self._passes = passes

    def solve(self, masks: Named) -> Solution:
        """The kept weights of each layer by least squares on their support; what was 0 stays so."""
        names = list(self._moments)  # in the order of the layers' first calls
        at_once = -(-len(names) // self._passes)
        solved: dict[str, Tensor] = {}
        for start in range(0, len(names), at_once):
            some = names[start : start + at_once]
            moments = self._watch.moments(some, solved) if start else self._moments
            for name in some:
                w = self._weights[name]
                kept = masks[name].reshape(w.shape) & (w != 0)
                found = moments[name].solve(w, kept, self._damping)
                solved[name] = found.float().view(masks[name].shape)
        return Solution({name: solved[name] for name in self}, predicted=None)


class _Watch:
    """Looks at the layers of the student while the calibration inputs pass, and at those of a teacher.

    Attributes:
        batches: The inputs.
    """

    def __init__(self, inputs: ScoreInputs, teacher: nn.Module | None, batches: list[Inputs]) -> None:
        self.batches = batches
        self._inputs = inputs
        self._student = unwrap(inputs.model)
        self._slots = slots_of(self._student)
        self._teacher = teacher
        self._layers = layers_of(self._student, inputs.targets)
        self._holds = {layer: name for name, shared in self._layers.items() for layer in shared}
        self._taught: dict[nn.Module, list[Tensor]] = {}
        self._found: dict[str, Moments] = {}
        for layer, name in self._holds.items():
            if isinstance(layer, TRANSPOSED):
                raise ScoreError(
                    f"LayerReconstruction does not know transposed convolutions, such as that of {name!r}. "
                    "Exclude it, or choose another criterion."
                )

    def moments(self, wanted: Sequence[str] = (), instead: Named | None = None) -> dict[str, Moments]:
        """By name, in the order of the layers' first calls.

        Args:
            wanted: Names of weights; all of them by default.
            instead: Values that weights of the student have in this pass.
        """
        self._found = {}
        wanted = wanted or list(self._layers)
        modules = {module: name for name, module in self._student.named_modules()}
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(preserving(self._student))
            if self._teacher is not None:
                stack.enter_context(preserving(self._teacher))
            for layer in (layer for name in wanted for layer in self._layers[name]):
                stack.callback(layer.register_forward_hook(self._look, with_kwargs=True).remove)
                if self._teacher is not None:
                    twin = self._teacher.get_submodule(modules[layer])
                    self._taught[layer] = []
                    keep = _keeping(self._holds[layer], self._taught[layer])
                    stack.callback(twin.register_forward_hook(keep, with_kwargs=True).remove)
            for x in (some for batch in self.batches for some in batch.split(_SAMPLES)):
                self._pass(x, instead or {})
        for name in wanted:
            self._check(name)
        return self._found

    def _pass(self, x: Inputs, instead: Named) -> None:
        for outputs in self._taught.values():
            outputs.clear()
        if self._teacher is not None:
            call(self._teacher, x)
        own = self._inputs.targets
        state = {name: weight.to(own[name].dtype) for name, weight in instead.items()}
        call_with(self._student, self._slots, state, x)

    def _check(self, name: str) -> None:
        if name not in self._found:
            raise ScoreError(
                f"LayerReconstruction never saw an input of {name!r}: its layer is not called, or its weight "
                "is used elsewhere. Exclude it, or choose another criterion."
            )
        found = self._found[name]
        if not bool(torch.isfinite(found.inner).all() & torch.isfinite(found.cross).all()):
            raise ScoreError(
                f"inputs or outputs of the layer of {name!r} are not finite. "
                "Check the weights of student and teacher."
            )

    def _look(
        self, layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> None:
        layer = cast("nn.Linear | Convolution", layer)
        name = self._holds[layer]
        x = promoted(input_of(name, layer, args, named, output), torch.float32)
        wanted = output if self._teacher is None else self._taken(layer, output)
        for rows, outputs in as_rows(layer, x, wanted.to(x.dtype)):
            if self._teacher is None:
                w = self._inputs.weights[name].to(x.dtype)
                outputs = rows @ w.reshape(len(rows), -1, rows.shape[-1]).mT
            found = Moments.of(rows, outputs)
            self._found[name] = self._found[name] + found if name in self._found else found

    def _taken(self, layer: nn.Linear | Convolution, output: Tensor) -> Tensor:
        """What the teacher's layer gave in the corresponding call, without the student's bias."""
        taught = self._taught[layer]
        if not taught or taught[0].shape != output.shape:
            got = tuple(taught[0].shape) if taught else "nothing"
            raise ScoreError(
                f"the layer of {self._holds[layer]!r} gives {tuple(output.shape)} in the student and {got} "
                "in the teacher, which has the same layers. Pass a copy of the student as teacher."
            )
        wanted = promoted(taught.pop(0), torch.float32)
        if layer.bias is None:
            return wanted
        return wanted - layer.bias.detach().view(-1, *(1,) * (layer.weight.ndim - 2))


def _keeping(name: str, outputs: list[Tensor]) -> Callable[..., None]:
    def hook(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        input_of(name, layer, args, named, output)
        outputs.append(output.detach())

    return hook


def _prunable(network: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the weights of all prunable layers, by the layer's name."""
    return {
        name: cast("nn.Linear", layer).weight.shape
        for name, layer in network.named_modules()
        if isinstance(layer, PRUNABLE_MODULES)
    }


def _by_group(w: Tensor, moments: Moments) -> Tensor:
    """A weight in the shape of its moments, double."""
    return w.double().reshape(moments.cross.shape)

"""A criterion of your own, outside the package: LAMP in ten lines, compared with plain magnitude.

    python examples/own_criterion.py

A criterion is a frozen dataclass that gives every weight a score, higher = keep. All else works with
it as with the built-in ones: selection, scopes, masks, diagnostics, `secateur.prune`.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

import secateur as sc


@dataclass(frozen=True)
class Lamp(sc.AbstractCriterion):
    """w² over the sum of v² of all weights v of the same tensor with |v| ≥ |w| (arXiv 2010.07611)."""

    def __call__(self, inputs: sc.ScoreInputs) -> dict[str, Tensor]:
        """Scores that make layers comparable, so that a global ranking empties none."""
        scores: dict[str, Tensor] = {}
        for name, weight in inputs.targets.items():
            squares, order = weight.detach().flatten().float().square().sort(descending=True)
            ratios = squares / squares.cumsum(0).clamp_min(torch.finfo(squares.dtype).tiny)
            scores[name] = torch.empty_like(ratios).scatter_(0, order, ratios).view(weight.shape)
        return scores


def main() -> None:
    """Cut one trained network by both criteria."""
    data = sc.load_data(sc.DataOptions(data="digits"), seed=0)
    torch.manual_seed(0)
    model = sc.build_model("small-cnn", num_classes=10, in_channels=1)
    for _ in sc.fit(model, data.train, sc.Recovery(epochs=6, kd_weight=0), validation=data.val):
        pass
    print(f"dense: {sc.evaluate(model, data.val).accuracy:.1%} on validation")
    for sparsity in (0.5, 0.8, 0.9, 0.95):
        masks: dict[str, sc.Masks] = {}
        for criterion in (sc.Magnitude(), Lamp()):
            student, name = copy.deepcopy(model), type(criterion).__name__
            masks[name] = sc.cut(student, None, criterion, sparsity=sparsity)
            sc.reestimate_batchnorm(student, data.train)
            accuracy = sc.evaluate(student, data.val).accuracy
            head = masks[name].density("classifier.weight")
            print(f"sparsity {sparsity:<4g} {name:<9} {accuracy:.1%}, density of the classifier {head:.2f}")
        print(f"  the two masks overlap by {sc.mask_overlap(masks['Magnitude'], masks['Lamp']):.2f}")


if __name__ == "__main__":
    main()

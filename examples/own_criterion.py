"""A criterion of your own, outside the package: ten lines, checked, and compared with plain magnitude.

    python examples/own_criterion.py

A criterion is a frozen dataclass that gives every weight a score, higher = keep. All else works with
it as with the built-in ones, also on the command line, from the folder where this file lies:

    secateur prune --criterion own_criterion:RelativeMagnitude --sparsity 0.9 --out runs/own
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

import secateur as sc
from secateur.testing import check_criterion


@dataclass(frozen=True)
class RelativeMagnitude(sc.AbstractCriterion):
    """|w| as a share of its row plus its share of its column: the weight part of RIA (ICLR 2024)."""

    def __call__(self, inputs: sc.ScoreInputs) -> dict[str, Tensor]:
        """Scores that make layers comparable, so that a global ranking empties none."""
        scores: dict[str, Tensor] = {}
        for name, weight in inputs.weights.items():
            sizes = weight.float().abs().flatten(1)  # a row is what one output is made of
            row, column = sizes.sum(1, keepdim=True), sizes.sum(0, keepdim=True)
            shares = sizes / row.clamp_min(1e-12) + sizes / column.clamp_min(1e-12)
            scores[name] = shares.view(weight.shape)
        return scores


def main() -> None:
    """Check the criterion, then cut one trained network by it and by magnitude."""
    check_criterion(RelativeMagnitude)
    print("RelativeMagnitude keeps the contract of a criterion")
    data = sc.load_data(sc.DataOptions(data="digits"), seed=0)
    torch.manual_seed(0)
    model = sc.build_model("small-cnn", num_classes=10, in_channels=1)
    for _ in sc.fit(model, data.train, sc.Recovery(epochs=6, kd_weight=0), validation=data.val):
        pass
    print(f"dense: {sc.evaluate(model, data.val).accuracy:.1%} on validation")
    for sparsity in (0.5, 0.8, 0.9, 0.95):
        masks: dict[str, sc.Masks] = {}
        for criterion in (sc.Magnitude(), RelativeMagnitude()):
            student, name = copy.deepcopy(model), type(criterion).__name__
            masks[name] = sc.cut(student, None, criterion, sparsity=sparsity)
            sc.reestimate_batchnorm(student, data.train)
            accuracy = sc.evaluate(student, data.val).accuracy
            print(f"sparsity {sparsity:<4g} {name:<17} {accuracy:.1%} on validation")
        print(f"  the two masks overlap by {sc.mask_overlap(*masks.values()):.2f}")


if __name__ == "__main__":
    main()

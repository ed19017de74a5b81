"""Labels or teacher? One scoring pass, then a cut at every alpha and sparsity, chosen on validation.

    python examples/alpha_sweep.py

Both terms of the teacher-guided score are kept, so another alpha costs no pass over the data.
"""

import copy

import torch
from torch import nn

import secateur as sc

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SPARSITIES = (0.5, 0.7, 0.8)


def trained(name: str, data: sc.Data) -> nn.Module:
    """A built-in network after a few epochs on labels."""
    torch.manual_seed(0)
    model = sc.build_model(name, num_classes=data.n_classes, in_channels=data.input_shape[0])
    for _ in sc.fit(model, data.train, sc.Recovery(epochs=5, kd_weight=0), validation=data.val):
        pass
    return model


def main() -> None:
    """Print the table, and the test accuracy of the one cut that validation chose."""
    data = sc.load_data(sc.DataOptions(data="digits"), seed=0)
    teacher, model = trained("wide-cnn", data), trained("small-cnn", data)
    scores = sc.score(model, data.calibration, sc.TeacherGuided(teacher))

    def cut(alpha: float, sparsity: float) -> nn.Module:
        student = copy.deepcopy(model)
        sc.apply_masks(student, sc.allocate(scores.at(alpha), sparsity=sparsity))
        sc.reestimate_batchnorm(student, data.train)
        return student

    print("sparsity      " + "".join(f"  {sparsity:>6g}" for sparsity in SPARSITIES))
    at_highest: dict[float, float] = {}
    for alpha in ALPHAS:
        row = [sc.evaluate(cut(alpha, sparsity), data.val).accuracy for sparsity in SPARSITIES]
        at_highest[alpha] = row[-1]
        print(f"alpha {alpha:<7g} " + "".join(f"  {accuracy:>6.1%}" for accuracy in row))
    chosen = max(ALPHAS, key=at_highest.__getitem__)
    accuracy = sc.evaluate(cut(chosen, SPARSITIES[-1]), data.test).accuracy
    print(f"chosen on validation at sparsity {SPARSITIES[-1]:g}: alpha {chosen:g}, {accuracy:.2%} on test")


if __name__ == "__main__":
    main()

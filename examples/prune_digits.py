"""The whole path in Python: prune a student to a tenth of its weights, guided by a teacher, and recover it.

    python examples/prune_digits.py [FOLDER]

Writes FOLDER/student.safetensors; by default the folder is the current one.
"""

import sys
from pathlib import Path

import torch
from torch import nn

import secateur as sc


def trained(name: str, data: sc.Data, *, epochs: int) -> nn.Module:
    """A built-in network, trained on labels from a fixed initialisation."""
    torch.manual_seed(0)
    model = sc.build_model(name, num_classes=data.n_classes, in_channels=data.input_shape[0])
    for epoch in sc.fit(model, data.train, sc.Recovery(epochs=epochs, kd_weight=0), validation=data.val):
        print(f"  {name} epoch {epoch.epoch}: loss {epoch.loss:.3f}, validation {epoch.val_accuracy:.1%}")
    return model


def main() -> None:
    """Train, prune, save, and read back what was saved."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    data = sc.load_data(sc.DataOptions(data="digits"), seed=0)
    teacher = trained("wide-cnn", data, epochs=5)
    student = trained("small-cnn", data, epochs=5)

    result = sc.prune(
        student,
        teacher=teacher,
        data=data,
        sparsity=0.9,
        criterion=sc.TeacherGuided(teacher, alpha=0.5, temperature=4.0),
        recovery=sc.Recovery(epochs=6, kd_weight=0.7),
    )
    for stage, accuracy in result.accuracy.items():
        if accuracy is not None:
            print(f"{stage:<14} {accuracy:.2%} on test")
    print(f"{result.masks.n_prune} of {result.masks.numel} prunable weights are zero")

    path = folder / "student.safetensors"
    sc.save_sparse(student, path, masks=result.masks, sparsity_asked=0.9)
    found = sc.inspect_checkpoint(path)
    print(f"{path.name}: {found.size_bytes} bytes, {found.ratio:.1f} times smaller than dense")
    if not sc.verify_checkpoint(path).ok:
        sys.exit(f"{path} is not what it says it is")


if __name__ == "__main__":
    main()

"""Your own training loop: score, allocate, then train with AdamW while no pruned weight comes back.

    python examples/own_loop.py [FOLDER]

Nothing here but the network and the loop has to be yours: any optimizer of torch.optim, clipping,
any schedule. Writes FOLDER/student.safetensors; by default the folder is the current one.
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import secateur as sc


def main() -> None:
    """Train, cut, train on under masks, save, load."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ".") / "student.safetensors"
    data = sc.load_data(sc.DataOptions(data="digits", batch_size=64), seed=0)
    torch.manual_seed(0)
    model = sc.build_model("small-cnn", num_classes=10, in_channels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)

    def train(epochs: range) -> None:
        for epoch in epochs:
            model.train()
            for batch in data.train.epoch(epoch):
                loss = F.cross_entropy(model(batch.inputs), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            print(f"epoch {epoch}: validation {sc.evaluate(model, data.val).accuracy:.1%}")

    train(range(5))
    scores = sc.score(model, data.calibration, sc.Magnitude(), exclude=["classifier.*"])
    masks = sc.allocate(scores, sparsity=0.9, scope=sc.Global(min_density=0.02))
    print(masks)
    # Zeroes the pruned weights and what AdamW remembers of them; checks on exit that all stayed zero.
    with sc.keep_masks(model, optimizer, masks):
        train(range(5, 10))
    sc.save_sparse(model, path, masks=masks)

    loaded = sc.build_model("small-cnn", num_classes=10, in_channels=1)
    checkpoint = sc.load_sparse(path, into=loaded)
    before, after = sc.evaluate(model, data.test), sc.evaluate(loaded, data.test)
    same = after == before and checkpoint.masks == masks
    print(f"test {after.accuracy:.2%}; loaded as it was saved: {same}")


if __name__ == "__main__":
    main()

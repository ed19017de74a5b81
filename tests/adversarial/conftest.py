"""A checkpoint in order, which the tests then damage."""

import pytest
import torch

from adversarial.checkpoint_helpers import make_model
from secateur.checkpoint import save_sparse
from secateur.masks import Masks, apply_masks


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A valid file: its path, its model and its masks."""
    model = make_model()
    generator = torch.Generator().manual_seed(5)
    masks = Masks(
        {
            name: torch.rand(model.get_parameter(name).shape, generator=generator) < density
            for name, density in {"0.weight": 0.2, "2.weight": 0.6}.items()
        }
    )
    apply_masks(model, masks)
    path = tmp_path_factory.mktemp("valid") / "student.safetensors"
    save_sparse(model, path, masks=masks, recipe={"lr": 0.1}, sparsity_asked=masks.sparsity)
    return path, model, masks

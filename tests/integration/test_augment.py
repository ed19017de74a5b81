"""Other looks of the inputs: images moved and mirrored, inputs mixed."""

from __future__ import annotations

import pytest
import torch

from secateur.augment import FlipShift, mix
from secateur.calibration import CalibrationRecovery
from secateur.errors import InvalidArgument


def test_flip_shift_is_for_images() -> None:
    with pytest.raises(InvalidArgument, match=r"got inputs of \(4, 6\). Set augment='none' or 'mix'"):
        FlipShift(1)(torch.zeros(4, 6), torch.Generator())


def test_flip_and_shift_moves_whole_images() -> None:
    x = torch.arange(2 * 1 * 4 * 4.0).view(2, 1, 4, 4) + 1
    generator = torch.Generator().manual_seed(0)
    seen = [FlipShift(1)(x, generator) for _ in range(50)]
    assert all(y.shape == x.shape for y in seen)
    assert any(torch.equal(y[0], x[0]) for y in seen)
    assert any(torch.equal(y[0], x[0].flip(-1)) for y in seen)
    assert any(torch.equal(y[0, 0, :, :3], x[0, 0, :, 1:]) and bool((y[0, 0, :, 3] == 0).all()) for y in seen)
    with pytest.raises(InvalidArgument, match="pixels"):
        FlipShift(-1)


def test_augmentations_go_by_name() -> None:
    x = torch.arange(8 * 4 * 4.0).view(8, 1, 4, 4)
    assert CalibrationRecovery().look is None
    for name, by_hand in (("flip-shift", FlipShift()), ("mix", mix)):
        look = CalibrationRecovery(augment=name).look  # type: ignore[arg-type]
        assert look is not None
        changed = [f(x, torch.Generator().manual_seed(0)) for f in (look, by_hand)]
        assert torch.equal(*changed)
        assert not torch.equal(changed[0], x)


def test_mix_leaves_half_and_mixes_the_rest() -> None:
    x = torch.eye(8)
    mixed = mix(x, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[:4], x[:4])
    assert torch.allclose(mixed.sum(1), torch.ones(8))
    assert bool((mixed[4:] > 0).sum(1).gt(1).any())

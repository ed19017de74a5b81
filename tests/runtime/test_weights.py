"""How weights are stored in a plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.runtime.weights import decode, encode, make_weight


def sparse(numel: int, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(numel, np.float32) * (rng.random(numel) < density)


@given(
    numel=st.integers(1, 3000),
    density=st.sampled_from([0.0, 0.001, 0.003, 0.05, 0.2, 0.5, 0.89, 1.0]),
    seed=st.integers(0, 10),
)
def test_numbers_come_back_bit_for_bit(numel: int, density: float, seed: int) -> None:
    dense = sparse(numel, density, seed)
    weight = make_weight(dense)
    coding, index = encode(weight)
    np.testing.assert_array_equal(weight.to_dense(), dense)
    if index is None:
        assert np.count_nonzero(dense) >= 0.9 * numel
    else:
        assert coding in ("bitmask", "delta4", "delta8")
        np.testing.assert_array_equal(decode(coding, index, numel), np.flatnonzero(dense))


@given(places=st.lists(st.integers(0, 5000), min_size=1, unique=True))
@pytest.mark.parametrize("coding", ["bitmask", "delta4", "delta8"])
def test_each_coding_by_its_definition(coding: str, places: list[int]) -> None:
    """Written as docs/plan.md says, one step after the other."""
    numel, stored = 5001, sorted(places)
    if coding == "bitmask":
        code = bytearray((numel + 7) // 8)
        for place in stored:
            code[place // 8] |= 1 << place % 8
    else:
        skip = 15 if coding == "delta4" else 255
        steps: list[int] = []
        at = -1
        for place in stored:
            gap = place - at - 1
            steps += [skip] * (gap // skip) + [gap % skip]
            at = place
        if coding == "delta4":
            steps += [15] * (len(steps) % 2)
            code = bytearray(low | high << 4 for low, high in zip(steps[::2], steps[1::2], strict=True))
        else:
            code = bytearray(steps)
    found = decode(coding, np.frombuffer(bytes(code), np.uint8), numel)
    assert found.tolist() == stored


@pytest.mark.parametrize(("sparsity", "bytes_each"), [(0.8, 4.55), (0.9, 4.65), (0.95, 4.95), (0.98, 5.02)])
def test_bytes_for_each_number(sparsity: float, bytes_each: float) -> None:
    """The sizes that docs/plan.md promises."""
    weight = make_weight(sparse(200_000, 1 - sparsity))
    _, index = encode(weight)
    assert index is not None
    assert 4 + index.size / weight.n_stored <= bytes_each


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_narrow_numbers_are_rounded_as_torch_rounds(precision: str, dtype: torch.dtype) -> None:
    numbers = np.concatenate([sparse(5000, 0.5), np.float32([np.inf, -np.inf, np.nan, 3e38, 1e-30, -0.0])])
    numbers[:100] = np.arange(100, dtype=np.float32) + np.float32(2**-8)
    found = make_weight(numbers, precision).to_dense()
    expected = torch.from_numpy(numbers).to(dtype).float().numpy()
    np.testing.assert_array_equal(found, expected)


def test_negative_zero_is_not_stored() -> None:
    for precision in ("fp32", "bf16", "fp16"):
        weight = make_weight(np.float32([-0.0] * 50 + [1.0]), precision)
        assert weight.n_stored == 1


@pytest.mark.parametrize(
    ("coding", "index", "message"),
    [
        ("bitmask", [1], "a bitmask of 1 bytes does not fit 9 numbers"),
        ("bitmask", [1, 2], "bits past its end"),
        ("delta8", [9], "position 9 lies outside 9 numbers"),
        ("delta8", [0, 255], "ends without a number"),
        ("delta4", [0xFF], "ends without a number"),
        ("delta4", [0x99], "lies outside 9 numbers"),
    ],
)
def test_bad_indices_are_refused(coding: str, index: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(coding, np.array(index, np.uint8), 9)

"""The bytes of packed masks and their digest, pinned: files written today must be readable tomorrow.

If a test here fails, the format changed. That breaks every stored checkpoint and digest, and needs a
new format version, not a new number below.
"""

from __future__ import annotations

import hashlib

import torch

from secateur.allocate import allocate
from secateur.masks import Masks, pack_bits, unpack_bits

FIRST = torch.tensor([[True, False, False, True], [False, True, True, True], [True, False, False, False]])
SECOND = (torch.arange(2 * 3 * 3 * 3) % 3 == 0).view(2, 3, 3, 3)
SCALAR = torch.tensor(True)


def test_bits_are_packed_in_c_order_first_in_the_lowest_bit() -> None:
    assert pack_bits(FIRST) == bytes([0b1110_1001, 0b0000_0001])
    assert pack_bits(SECOND) == bytes.fromhex("49922449922409")
    assert pack_bits(SCALAR) == b"\x01"
    assert torch.equal(unpack_bits(bytes.fromhex("e901"), (3, 4)), FIRST)
    assert torch.equal(unpack_bits(bytes.fromhex("49922449922409"), (2, 3, 3, 3)), SECOND)
    assert torch.equal(unpack_bits(b"\x01", ()), SCALAR)


def test_the_digest_is_pinned() -> None:
    masks = Masks({"b.weight": SECOND, "a.weight": FIRST})
    text = b"a.weight\0(3, 4)\0\xe9\x01" + b"b.weight\0(2, 3, 3, 3)\0" + bytes.fromhex("49922449922409")
    assert masks.digest == "sha256:" + hashlib.sha256(text).hexdigest()
    assert masks.digest == "sha256:19401118cc5e9a94361a2f5548d9a36daf46db1eb27de9ca976f9c2c7b837521"


def test_the_masks_of_a_ranking_are_pinned() -> None:
    """A ranking with ties, negative numbers and subnormals; 60 % of 35 is 21."""
    scores = {
        "conv": ((torch.arange(20.0) * 7) % 10 - 3).view(2, 2, 5),
        "fc": (torch.arange(15.0) % 4 * 2.0**-149).view(3, 5),
    }
    masks = allocate(scores, sparsity=0.6)
    assert masks.n_prune == 21
    assert pack_bits(masks["conv"]).hex() == "b6d906"
    assert pack_bits(masks["fc"]).hex() == "8008"
    assert masks.digest == "sha256:d080e5e8d68d869bc39bf40dea409902101b2accfeace398f7de268324100e5f"

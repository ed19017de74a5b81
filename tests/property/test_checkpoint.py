"""Whatever is saved comes back bit for bit, and a slow reader written from the spec agrees."""

import json
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import nn

from reference.checkpoint import content_digest, read_sparse, split_file
from secateur.checkpoint import inspect_checkpoint, load_sparse, save_sparse, verify_checkpoint
from secateur.checkpoint.coding import decode_tensor, encode_tensor
from secateur.counts import n_prune
from secateur.errors import SecateurWarning
from secateur.masks import Masks, apply_masks
from secateur.models import build_model, load_weights
from secateur.targets import select_targets

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SPECIAL = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-40]
DATA = Path(os.environ.get("SECATEUR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
RESNET20 = DATA / "resnet20-cifar10.safetensors"


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(INTEGERS[tensor.element_size()])


class Holder(nn.Module):
    """A module with one weight of any shape and type, a bias and a counter."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.tensor([1.5, -0.0]))
        self.register_buffer("count", torch.tensor(7))


@st.composite
def pruned(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and its mask; kept weights may be zero, infinite or NaN."""
    shape = draw(st.lists(st.integers(0, 6), max_size=4))
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    mask = torch.rand(shape, generator=generator) < density
    weight = torch.randn(shape, generator=generator)
    for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=4)):
        weight[torch.rand(shape, generator=generator) < 0.2] = value
    weight = weight.to(draw(st.sampled_from(DTYPES)))
    return weight.masked_fill(~mask, 0.0), mask


@settings(max_examples=150)
@given(case=pruned())
def test_every_tensor_comes_back_bit_for_bit(case, tmp_path_factory):
    weight, mask = case
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    model = Holder(weight)
    save_sparse(model, path, masks=Masks({"weight": mask}))
    found = load_sparse(path)
    assert found.state_dict["weight"].dtype == weight.dtype
    assert torch.equal(bits(found.state_dict["weight"]), bits(weight))
    assert torch.equal(found.masks["weight"], mask)
    assert torch.equal(bits(found.state_dict["bias"]), bits(model.bias.detach()))
    assert found.state_dict["count"] == 7

    other = Holder(torch.ones_like(weight))
    load_sparse(path, into=other)
    assert torch.equal(bits(other.weight.detach()), bits(weight))

    checks = {check.name: check.ok for check in verify_checkpoint(path).checks}
    assert checks.pop("finite") == bool(torch.isfinite(weight).all())
    assert all(checks.values())
    assert len(checks) == 4


@settings(max_examples=100)
@given(case=pruned())
def test_slow_reader_agrees(case, tmp_path_factory):
    weight, mask = case
    path = tmp_path_factory.getbasetemp() / "slow.safetensors"
    save_sparse(Holder(weight), path, masks=Masks({"weight": mask}))
    data = path.read_bytes()
    header, payload = split_file(data)
    assert header["__metadata__"]["content_digest"] == content_digest(header, payload)
    slow = read_sparse(data)["weight"]
    assert slow.shape == list(weight.shape)
    assert slow.mask == mask.reshape(-1).tolist()
    for found, expected in zip(slow.weights, weight.reshape(-1).double().tolist(), strict=True):
        assert found == expected or (math.isnan(found) and math.isnan(expected))


@settings(max_examples=100)
@given(
    numel=st.integers(0, 5000),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
)
def test_index_is_never_longer_than_the_bitmask(numel, density, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(numel, generator=generator) < density
    values = torch.randn(int(mask.sum()), generator=generator).to(dtype)
    data, index, heads = encode_tensor(values, mask)
    assert index[1] <= -(-numel // 8)
    found, found_mask = decode_tensor(data, index=index, heads=heads, numel=numel, dtype=dtype)
    assert torch.equal(bits(found), bits(values))
    assert torch.equal(found_mask, mask)


@pytest.mark.parametrize(("density", "most"), [(0.02, 0.89), (0.1, 0.60), (0.3, 0.38), (0.5, 0.25)])
def test_index_of_a_random_mask_is_near_its_entropy(density, most):
    numel, n_keep = 200_000, round(200_000 * density)
    mask = torch.randperm(numel, generator=torch.Generator().manual_seed(0)) < n_keep
    _, (_, size), _ = encode_tensor(torch.ones(n_keep), mask)
    entropy = -(density * math.log2(density) + (1 - density) * math.log2(1 - density))
    assert size <= most * n_keep
    assert size <= 1.05 * entropy * numel / 8


def test_same_model_same_bytes(tmp_path):
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).relu()
    masks = Masks({"weight": weight != 0})
    for name in ("a", "b"):
        save_sparse(
            Holder(weight), tmp_path / name, masks=masks, recipe={"z": 1, "a": [2]}, sparsity_asked=0.5
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_recipe_and_asked_sparsity_come_back(tmp_path):
    weight = torch.tensor([1.0, 0.0])
    recipe = {"criterion": "magnitude", "lr": 0.1, "nested": {"α": [1, None, True]}}
    save_sparse(
        Holder(weight),
        tmp_path / "x",
        masks=Masks({"weight": weight != 0}),
        recipe=recipe,
        sparsity_asked=0.5,
    )
    metadata = load_sparse(tmp_path / "x").metadata
    assert metadata.recipe == recipe
    assert metadata.sparsity_asked == 0.5
    assert metadata.n_parameters == 4


def test_masks_default_to_the_zeros_of_prunable_weights(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[1].weight[:] = 0.0
    save_sparse(model, tmp_path / "x")
    masks = load_sparse(tmp_path / "x").masks
    assert set(masks) == {"0.weight", "2.weight"}
    assert masks.n_prune == 4


def test_channels_last_and_strided_weights(tmp_path):
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    masks = Masks({"weight": torch.rand(6, 4, 3, 3) < 0.3})
    apply_masks(conv, masks)
    conv.register_buffer("turned", torch.arange(6).reshape(2, 3).t())
    save_sparse(conv, tmp_path / "x", masks=masks)
    found = load_sparse(tmp_path / "x").state_dict
    assert torch.equal(found["weight"], conv.weight)
    assert torch.equal(found["turned"], torch.tensor([[0, 3], [1, 4], [2, 5]]))


def test_slices_of_one_flat_buffer(tmp_path):
    flat = torch.arange(12.0)
    model = Holder(flat[:6].reshape(2, 3))
    model.more = nn.Parameter(flat[6:])
    model.register_buffer("overlap", flat[3:9])
    save_sparse(model, tmp_path / "x", masks=Masks({"weight": model.weight != 0}))
    found = load_sparse(tmp_path / "x")
    assert found.metadata.aliases == {}
    assert torch.equal(found.state_dict["overlap"], flat[3:9])
    assert torch.equal(found.state_dict["more"], flat[6:])


def tied_model() -> nn.Module:
    model = nn.Module()
    model.embedding = nn.Embedding(50, 8)
    model.head = nn.Linear(8, 50, bias=False)
    model.head.weight = model.embedding.weight
    model.body = nn.Linear(8, 8)
    return model


@pytest.mark.parametrize("masked", ["embedding.weight", "body.weight"])
def test_shared_parameters_are_stored_once(tmp_path, masked):
    model = tied_model()
    masks = Masks({masked: torch.rand_like(model.get_parameter(masked)) < 0.2})
    apply_masks(model, masks)
    path = tmp_path / "x"
    save_sparse(model, path, masks=masks)
    found = load_sparse(path)
    assert found.metadata.aliases == {"head.weight": "embedding.weight"}
    assert found.state_dict["head.weight"] is found.state_dict["embedding.weight"]
    fresh = tied_model()
    load_sparse(path, into=fresh)
    assert fresh.head.weight is fresh.embedding.weight
    assert torch.equal(fresh.head.weight, model.head.weight)
    assert found.metadata.n_parameters == 50 * 8 + 8 * 8 + 8
    assert inspect_checkpoint(path).sparsity_all == masks.n_prune / (50 * 8 + 8 * 8 + 8)
    assert load_file(path).keys() == {"embedding.weight", "body.weight", "body.bias"}


def test_two_masked_parameters_over_the_same_memory_keep_a_mask_each(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    with torch.no_grad():
        model[0].weight[2:] = 0.0
    model[1].weight.data = model[0].weight.data
    save_sparse(model, tmp_path / "x")
    found = load_sparse(tmp_path / "x", into=model)
    assert set(found.masks) == {"0.weight", "1.weight"}
    assert found.masks.n_prune == 48


def test_wrapped_models_keep_their_bare_names(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    save_sparse(torch.compile(model, backend="eager"), tmp_path / "x")
    assert set(load_sparse(tmp_path / "x").state_dict) == {"0.weight", "0.bias"}
    fresh = nn.Sequential(nn.Linear(4, 4))
    load_sparse(tmp_path / "x", into=torch.compile(fresh, backend="eager"))
    assert torch.equal(fresh[0].weight, model[0].weight)


@pytest.mark.parametrize("value_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_values_are_rounded_and_get_their_type_back(tmp_path, dtype, value_dtype):
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(40, 40, generator=generator) < 0.3
    weight = torch.randn(40, 40, generator=generator).to(dtype).masked_fill(~mask, 0.0)
    save_sparse(Holder(weight), tmp_path / "x", masks=Masks({"weight": mask}), value_dtype=value_dtype)
    found = load_sparse(tmp_path / "x").state_dict["weight"]
    wider = dtype.itemsize > 2
    assert found.dtype == dtype
    assert torch.equal(found, weight.to(value_dtype).to(dtype) if wider else weight)


def test_kept_weights_that_round_to_zero_stay_kept(tmp_path):
    weight = torch.tensor([1e-30, 0.0, 1.0])
    masks = Masks({"weight": weight != 0})
    with pytest.warns(SecateurWarning, match=r"1 kept weights of 'weight' are too small for torch.float16"):
        save_sparse(Holder(weight), tmp_path / "x", masks=masks, value_dtype=torch.float16)
    found = load_sparse(tmp_path / "x")
    assert found.masks == masks
    (sparsity,) = [check for check in verify_checkpoint(tmp_path / "x").checks if check.name == "sparsity"]
    assert "1 of 3 weights pruned (1 of those kept are zero too)" in sparsity.detail
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a zero that was one before is none that the type makes
        save_sparse(
            Holder(torch.tensor([0.0, 1.0])),
            tmp_path / "y",
            masks=Masks({"weight": torch.tensor([True, True])}),
            value_dtype=torch.float16,
        )
    assert found.state_dict["weight"].tolist() == [0.0, 0.0, 1.0]


def test_inspection_of_sparse_and_dense_files_agrees(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5))
    masks = Masks({"0.weight": torch.rand(8, 3, 3, 3) < 0.1, "3.weight": torch.rand(5, 32) < 0.9})
    apply_masks(model, masks)
    save_sparse(model, tmp_path / "sparse", masks=masks)
    (tmp_path / "dense").write_bytes(save(model.state_dict()))
    sparse, dense = inspect_checkpoint(tmp_path / "sparse"), inspect_checkpoint(tmp_path / "dense")
    assert (sparse.kind, dense.kind) == ("sparse", "dense")
    assert sparse.size_bytes == (tmp_path / "sparse").stat().st_size
    assert sparse.dense_size_bytes == dense.dense_size_bytes == dense.size_bytes
    assert sparse.ratio == dense.size_bytes / sparse.size_bytes
    assert dense.ratio == 1.0
    assert sparse.sparsity == masks.sparsity
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert sparse.sparsity_all == masks.n_prune / n_parameters
    assert [row.name for row in sparse.rows] == sorted(model.state_dict())
    facts = [[(r.name, r.shape, r.dtype, r.density) for r in found.rows] for found in (sparse, dense)]
    assert facts[0] == facts[1]
    assert {row.name for row in sparse.rows if row.coding != "dense"} == set(masks)
    assert sum(row.size_bytes for row in dense.rows) < dense.size_bytes
    assert json.loads(json.dumps(sparse.to_dict()))["rows"][0]["name"] == sparse.rows[0].name


@pytest.mark.parametrize(
    ("shape", "asked", "pruned", "ok"),
    [
        ((10, 10), 0.9, 90, True),
        ((10, 10), 0.9, 89, False),
        ((10, 10), 0.905, 91, True),
        ((3,), 0.9, 3, True),
    ],
)
def test_verification_counts_exactly(tmp_path, shape, asked, pruned, ok):
    weight = torch.ones(shape)
    weight.reshape(-1)[:pruned] = 0.0
    save_sparse(Holder(weight), tmp_path / "x", masks=Masks({"weight": weight != 0}), sparsity_asked=asked)
    found = verify_checkpoint(tmp_path / "x")
    assert {check.name for check in found.checks if not check.ok} == (set() if ok else {"sparsity"})
    assert found.ok is ok


def test_verification_takes_exact_counts_in_each_tensor(tmp_path):
    model = nn.Module()
    for name in "abc":
        model.register_parameter(name, nn.Parameter(torch.tensor([0.0, 1.0, 1.0])))
    masks = Masks({name: parameter != 0 for name, parameter in model.named_parameters()})
    assert masks.n_prune == sum(n_prune(3, 0.45) for _ in "abc") != n_prune(9, 0.45)
    save_sparse(model, tmp_path / "x", masks=masks, sparsity_asked=0.45)
    assert verify_checkpoint(tmp_path / "x").ok
    with torch.no_grad():
        model.a[1] = model.b[1] = 0.0  # 2, 2 and 1: neither 1 in each, nor 4 in all
    masks = Masks({name: parameter != 0 for name, parameter in model.named_parameters()})
    save_sparse(model, tmp_path / "y", masks=masks, sparsity_asked=0.45)
    assert [check.name for check in verify_checkpoint(tmp_path / "y").checks if not check.ok] == ["sparsity"]


@pytest.mark.skipif(not RESNET20.is_file(), reason="no pretrained ResNet-20 at hand")
def test_resnet20_is_as_small_as_promised(tmp_path):
    model = build_model("resnet20", num_classes=10, in_channels=3)
    load_weights(model, RESNET20)
    targets = select_targets(model)
    ranked = torch.cat([weight.detach().abs().flatten() for weight in targets.values()]).sort().values
    threshold = ranked[n_prune(ranked.numel(), 0.9) - 1]
    masks = Masks({name: weight.detach().abs() > threshold for name, weight in targets.items()})
    apply_masks(model, masks)
    expected = {"full": (None, 8.5, 3.8), "half": (torch.bfloat16, 14.0, 1.85)}
    for name, (value_dtype, ratio, bytes_per_weight) in expected.items():
        path = tmp_path / name
        save_sparse(model, path, masks=masks, value_dtype=value_dtype, sparsity_asked=0.9)
        found = inspect_checkpoint(path)
        assert found.ratio >= ratio
        payload = sum(row.size_bytes for row in found.rows if row.name in masks)
        assert payload <= bytes_per_weight * masks.n_keep
        assert verify_checkpoint(path).ok

"""Matrices that are pruned only if they are named: inside attention, recurrent, of libraries, embeddings."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from helpers import Attention, Recurrent
from secateur.errors import LeftDenseWarning, ScoreError, TargetError
from secateur.runtime import Engine
from secateur.targets import select_targets
from secateur.testing.networks import CLASSES, seeded, vectors


class Transposed(nn.Module):
    """A layer of a library's own, as GPT-2 of `transformers` has: the weight is (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(6, 8)), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ self.weight))


IN_PROJECTION = "body.layers.0.self_attn.in_proj_weight"
CASES: dict[str, tuple[type[nn.Module], tuple[str, ...], set[str]]] = {
    "attention": (Attention, ("*", "*.in_proj_weight"), {IN_PROJECTION}),
    "recurrent": (Recurrent, ("*", "rnn.weight_*"), {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}),
    "library": (Transposed, ("*", "weight"), {"weight"}),
}
each_case = pytest.mark.parametrize("case", CASES)


def made(case: str, seed: int = 0) -> nn.Module:
    with seeded(seed):
        return CASES[case][0]()


@each_case
def test_a_pattern_that_names_them_adds_them(case: str) -> None:
    model, (_, include, extra) = made(case), CASES[case]
    default = select_targets(model)
    named = select_targets(model, include=include)
    assert set(named) - set(default) == extra
    assert list(named) == [name for name, _ in model.named_parameters() if name in named]
    assert set(select_targets(model, include=include[1:])) == extra
    assert set(select_targets(model, include=include, exclude=include[1:])) == set(default)
    with pytest.raises(TargetError, match="matches no prunable weight"):
        select_targets(model, exclude=include[1:])
    for name in extra:
        model.get_parameter(name).requires_grad_(False)
    with pytest.raises(TargetError, match="matches no prunable weight"):
        select_targets(model, include=include)


@each_case
@pytest.mark.parametrize("steps", [False, True])
def test_they_are_cut_and_stay_cut(case: str, steps: bool, tmp_path: Path) -> None:
    student, teacher, (_, include, extra) = made(case), made(case, 1), CASES[case]
    recovery = sc.CalibrationRecovery(steps=2, final_steps=3, precision="fp32") if steps else None
    criterion = sc.TeacherFisher(teacher) if steps else sc.TeacherGuided(teacher)
    masks = sc.cut(student, vectors(), criterion, sparsity=0.6, stages=2, include=include, recovery=recovery)
    recipe = sc.Recovery(epochs=2, kd_weight=0.5, precision="fp32")
    for _ in sc.fit(student, vectors(), recipe, masks=masks, teacher=teacher):
        pass
    masks.check(student)
    for name in extra:
        weight = student.get_parameter(name)
        assert torch.equal(weight != 0, masks[name])
        assert 0 < float(masks[name].float().mean()) < 1
    sc.save_sparse(student, tmp_path / "student.safetensors", masks=masks)
    other = made(case, 2)
    sc.load_sparse(tmp_path / "student.safetensors", into=other)
    assert all(
        torch.equal(a, b)
        for a, b in zip(student.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_plan_runs_what_is_left_of_attention() -> None:
    model = made("attention").eval()
    sc.cut(model, None, sc.Magnitude(), sparsity=0.7, include=("*", "*.in_proj_weight"))
    x = vectors()[0][0]
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(Engine(sc.runtime.compile(model, x))(x), expected, rtol=1e-4, atol=1e-5)


def test_scores_from_the_inputs_of_layers_do_not_see_them() -> None:
    model = made("recurrent")
    for criterion in (sc.Wanda(), sc.LayerReconstruction(copy.deepcopy(model))):
        with pytest.raises(ScoreError, match=r"never saw an input of 'rnn\.weight_ih_l0'"):
            sc.score(model, vectors(), criterion, include=("*", "rnn.weight_*"))


class TwoFrequencies(nn.Conv2d):
    """A layer with the weights of a convolution that takes and gives pairs, as octave convolutions do."""

    def forward(self, x: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x), super().forward(small)


class Octave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = TwoFrequencies(1, 4, 3), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.both(x, x[:, :, ::2, ::2])
        return self.head(torch.cat([part.mean((2, 3)) for part in parts], 1))


def test_scores_from_inputs_name_a_layer_that_takes_several() -> None:
    model = Octave()
    batches = [(torch.randn(4, 1, 12, 12), torch.arange(4) % CLASSES)]
    for criterion in (sc.Wanda(), sc.LayerReconstruction(copy.deepcopy(model))):
        with pytest.raises(ScoreError, match=r"layer of 'both\.weight', a TwoFrequencies, takes or gives"):
            sc.score(model, batches, criterion)
        sc.score(model, batches, criterion, exclude=("both.weight",))


@each_case
def test_a_cut_that_leaves_most_of_a_network_dense_says_so(case: str) -> None:
    model, (_, include, extra) = made(case), CASES[case]
    if case == "attention":  # its other layers are larger
        with warnings.catch_warnings():
            warnings.simplefilter("error", LeftDenseWarning)
            sc.cut(model, None, sc.Magnitude(), sparsity=0.5)
        return
    first = next(name for name in model.state_dict() if name in extra)
    with pytest.warns(LeftDenseWarning, match=f"most of the weights stay dense: {first}"):
        sc.cut(model, None, sc.Magnitude(), sparsity=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftDenseWarning)
        sc.cut(model, None, sc.Magnitude(), sparsity=0.5, include=include)
        sc.cut(model, None, sc.Magnitude(), sparsity=0.5, include=["head.*"])


def test_a_network_of_nothing_else_says_how() -> None:
    table = nn.Sequential(nn.Embedding(9, 4))
    with pytest.raises(TargetError, match=r"name them: include=\['0\.weight'\]"):
        select_targets(table)
    assert list(select_targets(table, include=["0.weight"])) == ["0.weight"]


def test_embeddings_are_not_missed() -> None:
    model = nn.Sequential(nn.Embedding(100, 8), nn.Flatten(), nn.Linear(48, CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeftDenseWarning)
        sc.cut(model, None, sc.Magnitude(), sparsity=0.5)
    assert set(select_targets(model, include=("*", "0.weight"))) == {"0.weight", "2.weight"}


def test_a_shared_weight_is_found_and_left_out_by_any_of_its_names() -> None:
    model = nn.ModuleDict({"enc": nn.Linear(4, 4), "dec": nn.Linear(4, 4), "dec2": nn.Linear(4, 2)})
    model["dec"].weight = model["enc"].weight
    assert list(select_targets(model, exclude=["dec.*"])) == ["dec2.weight"]
    assert list(select_targets(model, include=["dec.*"])) == ["enc.weight"]
    assert list(select_targets(model)) == ["enc.weight", "dec2.weight"]

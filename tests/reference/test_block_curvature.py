"""Curvature in blocks against the dense Gauss–Newton matrix with all outside of the blocks set to 0."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from reference.test_gauss_newton import DAMPING, Dense, criterion, flat, inputs, network
from secateur.allocate import allocate
from secateur.errors import InvalidArgument, ScoreError
from secateur.scores import SolvingScores, TeacherCurvature, score
from secateur.testing import check_criterion

SIZES = (20, 15)
"""Weights of the two tensors of `network`."""


class InBlocks(Dense):
    """`Dense` without what lies between weights of different blocks."""

    def __init__(self, block: int, student: nn.Module, teacher: nn.Module, x: Tensor) -> None:
        super().__init__(student, teacher, x)
        number = torch.cat([1000 * i + torch.arange(n) // block for i, n in enumerate(SIZES)])
        self.curvature = self.curvature * (number[:, None] == number)
        self.hessian = self.curvature + self.damping * torch.eye(sum(SIZES), dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 4, 7, 20, 1000])
def test_scores_and_kept_weights_are_those_of_the_dense_matrix_in_blocks(block: int) -> None:
    student, teacher, x = network(0), network(1), inputs()
    dense = InBlocks(block, student, teacher, x)
    scores = score(student, [x[:5], x[5:]], criterion(teacher, block=block))
    expected = dense.saliency()
    assert torch.allclose(flat(scores), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
    masks = allocate(scores, sparsity=0.4)
    assert isinstance(scores, SolvingScores)
    solution = scores.solve(masks)
    weights, predicted = dense.solve(flat(masks) > 0)
    assert torch.allclose(flat(solution.weights), weights, rtol=1e-3, atol=1e-4)
    assert solution.predicted == pytest.approx(predicted, rel=1e-3)
    assert int((flat(solution.weights) == 0).sum()) == masks.n_prune


def test_one_block_for_each_tensor_of_a_net_of_one_tensor_is_the_whole_matrix() -> None:
    student, teacher, x = network(0), network(1), inputs()
    only = ["0.weight"]
    whole, blocked = (
        score(student, [x], criterion(teacher, block=block), include=only)["0.weight"] for block in (None, 99)
    )
    assert torch.allclose(whole, blocked, rtol=1e-3, atol=1e-5 * float(whole.max()))


def test_weights_that_are_gone_score_nothing_and_never_come_back() -> None:
    student, teacher, x = network(0), network(1), inputs()
    with torch.no_grad():
        student[0].weight[2] = 0.0
    scores = score(student, [x], TeacherCurvature(teacher, block=8))
    assert bool((scores["0.weight"][2] == 0).all())
    assert isinstance(scores, SolvingScores)
    assert bool((scores.solve(allocate(scores, sparsity=0.5)).weights["0.weight"][2] == 0).all())


def test_the_contract() -> None:
    check_criterion(TeacherCurvature(nn.Identity(), block=8))
    check_criterion(TeacherCurvature(nn.Identity(), block=1, draw="exact", damping=DAMPING))


def test_refusals() -> None:
    teacher = network(1)
    with pytest.raises(InvalidArgument, match="block must be at least 1"):
        TeacherCurvature(teacher, block=0)
    with pytest.raises(ScoreError, match=r"blocks of 8 weights need .* lower block"):
        score(network(0), [inputs()], TeacherCurvature(teacher, block=8, memory_gb=1e-9))
    silent = copy.deepcopy(teacher)
    silent.append(nn.Linear(3, 3, bias=False).double())
    with torch.no_grad():
        silent[3].weight.zero_()
    with pytest.raises(ScoreError, match="no curvature"):
        score(silent, [inputs()], TeacherCurvature(teacher, block=8), include=["0.weight"])

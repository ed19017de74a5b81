"""Slow oracles: losses in plain Python, gradients by finite differences, scores in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Row = Sequence[float]
"""Logits of one sample."""


def softmax(row: Row, temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp((z - max(row)) / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def standardized(row: Row) -> list[float]:
    mean = sum(row) / len(row)
    std = math.sqrt(sum((z - mean) ** 2 for z in row) / len(row))
    return [(z - mean) / (std + 1e-7) for z in row]


def cross_entropy(rows: Sequence[Row], labels: Sequence[int]) -> float:
    return sum(-math.log(softmax(row)[label]) for row, label in zip(rows, labels, strict=True)) / len(rows)


def kl(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def kd(
    student: Sequence[Row],
    teacher: Sequence[Row],
    *,
    kind: str,
    temperature: float,
    beta: float = 0.5,
    standardize: bool = False,
) -> float:
    """T² times the mean divergence at temperature T, or the plain distances."""
    return sum(
        _kd_of_sample(s, t, kind=kind, temperature=temperature, beta=beta, standardize=standardize)
        for s, t in zip(student, teacher, strict=True)
    ) / len(student)


def _kd_of_sample(s: Row, t: Row, *, kind: str, temperature: float, beta: float, standardize: bool) -> float:
    if kind == "mse":
        return sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
    if kind == "cosine":
        dot = sum(a * b for a, b in zip(s, t, strict=True))
        return 1 - dot / math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))
    if standardize:
        s, t = standardized(s), standardized(t)
    p_s, p_t = softmax(s, temperature), softmax(t, temperature)
    forward, reverse = kl(p_t, p_s), kl(p_s, p_t)
    weight = {"forward": 0.0, "reverse": 1.0, "ca-kld": beta}[kind]
    return temperature**2 * (weight * reverse + (1 - weight) * forward)


def finite_difference(loss: Callable[[], float], weight: Tensor, *, step: float = 1e-6) -> Tensor:
    """The gradient of `loss` by central differences, one weight at a time; `weight` must be float64."""
    gradient = torch.zeros_like(weight)
    with torch.no_grad():
        for index in range(weight.numel()):
            place = weight.view(-1)
            kept = float(place[index])
            place[index] = kept + step
            above = loss()
            place[index] = kept - step
            below = loss()
            place[index] = kept
            gradient.view(-1)[index] = (above - below) / (2 * step)
    return gradient


def logits(model: nn.Module, x: Tensor) -> list[list[float]]:
    with torch.no_grad():
        return model(x).tolist()


def saliency(kind: str, gradient: float, weight: float) -> float:
    return {"grad": abs(gradient), "grad*weight": abs(weight * gradient), "grad^2": gradient * gradient}[kind]


def accumulated(values: Sequence[float], how: str, momentum: float) -> float:
    """Per-batch saliencies of one weight → its score."""
    if how == "mean":
        return sum(values) / len(values)
    running = values[0]
    for value in values[1:]:
        running = momentum * running + (1 - momentum) * value
    return running


def term(gradients: Sequence[Tensor], weight: Tensor, *, kind: str, how: str, momentum: float) -> Tensor:
    """One weight tensor's score from its gradient in each batch."""
    columns = zip(*(g.reshape(-1).tolist() for g in gradients), strict=True)
    weights = weight.detach().reshape(-1).tolist()
    scores = [
        accumulated([saliency(kind, g, w) for g in column], how, momentum)
        for column, w in zip(columns, weights, strict=True)
    ]
    return torch.tensor(scores, dtype=torch.float64).view(weight.shape)


def lamp(weights: Sequence[float]) -> list[float]:
    """Each w² over the sum of the squares that are not removed before it; equal ones go first to last."""
    order = sorted(range(len(weights)), key=lambda i: (abs(weights[i]), i))
    scores = [0.0] * len(weights)
    for place, i in enumerate(order):
        left = sum(weights[j] ** 2 for j in order[place:])
        scores[i] = weights[i] ** 2 / left if left > 0 else 0.0
    return scores


def gradients(loss: Callable[[], float], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: finite_difference(loss, weight) for name, weight in weights.items()}


def moved(weights: dict[str, Tensor], by: dict[str, Tensor], factor: float) -> None:
    """Move the weights in place by ``factor · by``."""
    with torch.no_grad():
        for name, weight in weights.items():
            weight.add_(by[name], alpha=factor)


def hessian_times(
    loss: Callable[[], float], weights: dict[str, Tensor], vector: dict[str, Tensor], *, step: float = 1e-3
) -> dict[str, Tensor]:
    """H·v by the central difference of gradients, themselves finite differences."""
    moved(weights, vector, step)
    above = gradients(loss, weights)
    moved(weights, vector, -2 * step)
    below = gradients(loss, weights)
    moved(weights, vector, step)
    return {name: (above[name] - below[name]) / (2 * step) for name in weights}


def platon(sensitivities: Sequence[float], beta1: float, beta2: float) -> float:
    """Importance times uncertainty of one weight, from |w·g| of each batch."""
    importance = uncertainty = 0.0
    for now in sensitivities:
        importance = beta1 * importance + (1 - beta1) * now
        uncertainty = beta2 * uncertainty + (1 - beta2) * abs(now - importance)
    return importance * uncertainty


def trained(
    loss: Callable[[int], float], parameters: dict[str, Tensor], *, steps: int, lr: float
) -> dict[str, Tensor]:
    """Take gradient steps in place, with finite differences; gives back where they started."""
    start = {name: p.detach().clone() for name, p in parameters.items()}
    for k in range(steps):
        moved(parameters, gradients(lambda k=k: loss(k), parameters), -lr)  # type: ignore[misc]
    return start

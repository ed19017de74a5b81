"""Which tensors are pruned, and how they are looked up by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from secateur.errors import TargetError
from secateur.kinds import check_kind

PRUNABLE_MODULES: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
"""Modules whose ``weight`` is pruned by default: never biases, norms or embeddings."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Those of them whose weight has inputs first, outputs second."""

MAKE_PARAMETERS = (
    "Make them parameters first, by what undoes how they were made: "
    "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), "
    "torch.nn.utils.remove_weight_norm(layer), "
    "or torch.nn.utils.prune.remove(layer, 'weight') after import torch.nn.utils.prune."
)
"""How weights that are `computed_weights` can be pruned."""

_WRAPPERS = ("_orig_mod", "module")
"""Name components that torch.compile and the data-parallel wrappers put in front of a model."""
_KINDS = ("OptimizedModule", "DataParallel", "DistributedDataParallel")
"""The classes of these wrappers."""


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters keyed by the state-dict name of the bare model, a shared one once.

    The prefixes of ``torch.compile`` (``_orig_mod.``) and of ``DataParallel`` and
    ``DistributedDataParallel`` (``module.``) are left out, so names do not change when a model is wrapped.
    """
    return dict(unwrap(model).named_parameters())


def unwrap(model: nn.Module) -> nn.Module:
    """The bare model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` wrappers."""
    while True:
        children = dict(model.named_children())
        if len(children) != 1 or any(True for _ in model.parameters(recurse=False)):
            return model
        (name, child) = next(iter(children.items()))
        if name not in _WRAPPERS or type(model).__name__ not in _KINDS:
            return model
        model = child


def select_targets(
    model: nn.Module, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Prunable weights by state-dict name, in the order of the model.

    These are the ``weight`` tensors of `PRUNABLE_MODULES` that are trainable. A weight that is
    frozen (``requires_grad=False``) counts as one that must not be touched; a weight that is shared
    with another kind of module, such as an embedding, is left out; a shared weight appears once.
    Other trainable parameters of two dimensions or more, such as the projections inside
    ``nn.MultiheadAttention``, recurrent weights and embeddings, are pruned where a pattern names them and no
    weight of those modules.

    Args:
        model: Any module.
        include: Shell patterns (``*``, ``?``, ``[…]``) of names to consider, such as
            ``("*", "*.in_proj_weight")`` for the projections inside ``nn.MultiheadAttention`` too. Any of the
            names of a shared weight will do.
        exclude: Shell patterns of names to leave dense; they win over `include`.

    Raises:
        TargetError: if a pattern matches no prunable weight, or nothing is left to prune.
        InvalidArgument: if `model` is none.
    """
    check_kind("model", model, nn.Module, "a trained torch.nn.Module")
    _check_patterns(include=include, exclude=exclude)
    candidates, others, frozen = _sorted(unwrap(model))
    matches = _Matcher(model)
    named: set[str] = set()
    for pattern in (p for p in include if p != "*"):
        if not any(matches(name, pattern) for name in candidates):
            named |= _matched(matches, pattern, others, candidates)
    allowed = {n: p for n, p in parameters_by_name(model).items() if n in candidates or n in named}
    for pattern in exclude:
        _matched(matches, pattern, allowed, candidates)
    chosen = {
        name: weight
        for name, weight in allowed.items()
        if any(matches(name, p) for p in include) and not any(matches(name, p) for p in exclude)
    }
    if not chosen:
        raise TargetError(_why_nothing(model, len(candidates), frozen, list(others)))
    return chosen


class _Matcher:
    """Whether a shell pattern matches a parameter by any of its names: a shared one has several."""

    def __init__(self, model: nn.Module) -> None:
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        self._names = {own[0]: own for own in names.values()}

    def __call__(self, name: str, pattern: str) -> bool:
        return any(fnmatchcase(own, pattern) for own in self._names[name])


def _matched(
    matches: _Matcher, pattern: str, names: Collection[str], candidates: Collection[str]
) -> set[str]:
    """Which of `names` a pattern matches.

    Raises:
        TargetError: if it matches none.
    """
    found = {name for name in names if matches(name, pattern)}
    if not found:
        prunable = ", ".join(candidates) or "none"
        raise TargetError(f"pattern {pattern!r} matches no prunable weight. Prunable here: {prunable}.")
    return found


def dense_majority(model: nn.Module, targets: Mapping[str, nn.Parameter]) -> list[str]:
    """Matrices beside `targets`, embeddings and computed weights, if they are more numbers than `targets`."""
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for parameter in module.parameters(recurse=False)
    }
    made = tuple(f"{layer}." for layer in computed_weights(model))
    _, others, _ = _sorted(unwrap(model))
    left = {
        name: parameter
        for name, parameter in others.items()
        if name not in targets and id(parameter) not in tables and not name.startswith(made)
    }
    n_left, n_targets = (sum(p.numel() for p in some.values()) for some in (left, targets))
    return list(left) if n_left > n_targets else []


def computed_weights(model: nn.Module) -> list[str]:
    """Layers of `PRUNABLE_MODULES` whose weight is no parameter, but made from others in each pass.

    So do ``torch.nn.utils.parametrizations`` and ``torch.nn.utils.prune``; such a weight cannot be pruned.
    """
    return [
        name
        for name, module in unwrap(model).named_modules()
        if isinstance(module, PRUNABLE_MODULES)
        and "weight" not in dict(module.named_parameters(recurse=False))
        and getattr(module, "weight", None) is not None
    ]


def _check_patterns(**patterns: Sequence[str]) -> None:
    for name, given in patterns.items():
        if isinstance(given, str):
            raise TargetError(f"{name} must be a sequence of patterns, got the text {given!r}: ({given!r},)")


def _sorted(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter], int]:
    """Weights pruned by default and other matrices, if trainable; and how many of the former are frozen."""
    prunable: set[int] = set()
    other: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, UninitializedParameter):
                raise TargetError(
                    f"{type(module).__name__} has no {name} yet. Run the model on one batch first."
                )
            is_target = name == "weight" and isinstance(module, PRUNABLE_MODULES)
            (prunable if is_target else other).add(id(parameter))
    wanted = {n: p for n, p in model.named_parameters() if id(p) in prunable - other and p.numel()}
    trainable = {n: p for n, p in wanted.items() if p.requires_grad}
    others = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name not in wanted and parameter.requires_grad and parameter.ndim >= 2 and parameter.numel()
    }
    return trainable, others, len(wanted) - len(trainable)


def _why_nothing(model: nn.Module, n_candidates: int, n_frozen: int, others: list[str]) -> str:
    where = f"{type(model).__name__} has nothing to prune: "
    if n_candidates:
        return where + "include and exclude leave none of its prunable weights."
    if n_frozen:
        return where + (
            f"its {n_frozen} prunable weights are frozen (requires_grad=False). "
            "Call requires_grad_(True) on what may be pruned."
        )
    if made := computed_weights(model):
        return where + f"the weights of {', '.join(made)} are no parameters. {MAKE_PARAMETERS}"
    where += "it holds no Conv, ConvTranspose or Linear weight."
    others = dense_majority(model, {}) or others
    return f"{where} To prune other matrices, name them: include=[{others[0]!r}]." if others else where

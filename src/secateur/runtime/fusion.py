"""Rewrites that leave the results alone: fewer operations, each of which does more.

BatchNorm goes into the weights before it; activation functions and sums with a shortcut go into the
operation before them, which stores its result only once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from secateur.runtime.attributes import KERNELS
from secateur.runtime.graph import UNCHOSEN, Graph
from secateur.runtime.program import Op

_WITH_ACTIVATION = (*KERNELS, "scale_shift", "add", "sub", "mul", "div")


def fuse(graph: Graph) -> None:
    """Rewrite a graph in place until nothing can be fused any more."""
    rewrites = (
        _merge_views,
        _views_last,
        _shortcuts_as_convs,
        _fold_scale_shift,
        _fuse_activations,
        _fuse_residuals,
    )
    graph.drop_unused()
    changed = True
    while changed:
        changed = False
        for rewrite in rewrites:
            while rewrite(graph):
                graph.drop_unused()
                changed = True


def _merge_views(graph: Graph) -> bool:
    """A reshape of a reshape is one; one to the shape at hand is none."""
    producers = {op.output: op for op in graph.ops}
    for place, op in enumerate(graph.ops):
        if op.kind != "reshape":
            continue
        before = producers.get(op.inputs[0])
        if graph.shape(op.output) == graph.shape(op.inputs[0]):
            _replace_value(graph, op.output, op.inputs[0])
            return True
        if before is not None and before.kind == "reshape":
            graph.ops[place] = replace(op, inputs=before.inputs)
            return True
    return False


def _views_last(graph: Graph) -> bool:
    """f(reshape(x)) becomes reshape(f(x)) for f by channel, so that f meets the layer before it."""
    users, producers = graph.users(), {op.output: op for op in graph.ops}
    for place, op in enumerate(graph.ops):
        view = producers.get(op.inputs[0]) if op.kind in ("scale_shift", "activate", "clip") else None
        if view is None or view.kind != "reshape" or len(users[view.output]) != 1:
            continue
        before, after = graph.shape(view.inputs[0]), graph.shape(view.output)
        source = producers.get(view.inputs[0])
        if before[:2] == after[:2] and source is not None and source.kind in KERNELS:
            inner = len(graph.values)
            graph.values.append(graph.values[view.inputs[0]])
            graph.ops[place : place + 1] = [
                replace(op, inputs=view.inputs, output=inner),
                replace(view, inputs=(inner,), output=op.output),
            ]
            return True
    return False


def _shortcuts_as_convs(graph: Graph) -> bool:
    """Every s-th pixel, with channels of zeros around, is a 1×1 convolution of stride s with an identity.

    That is the parameter-free shortcut of the ResNets for CIFAR. As a convolution it stays in the
    layout of its neighbours; its weight has one number for each channel.
    """
    users, producers = graph.users(), {op.output: op for op in graph.ops}
    for place, pad in enumerate(graph.ops):
        rows = _step_before(pad, 2, graph, users, producers) if pad.kind == "pad" else None
        columns = _step_before(rows, 3, graph, users, producers) if rows is not None else None
        if rows is None:
            columns = _step_before(pad, 3, graph, users, producers) if pad.kind == "pad" else None
            rows = _step_before(columns, 2, graph, users, producers) if columns is not None else None
        if rows is None or columns is None or not _pads_channels_with_zeros(pad):
            continue
        first = min(rows, columns, key=lambda op: op.output)
        channels, (before, after) = graph.shape(first.inputs[0])[1], pad.attributes["padding"][1]
        identity = np.eye(before + channels + after, channels, -before, dtype=np.float32)
        weight = graph.add_weight(f"{pad.name}.identity", identity[:, :, None, None])
        attributes = {
            "weight": weight,
            "bias": None,
            "stride": [rows.attributes["step"], columns.attributes["step"]],
            "padding": [0, 0, 0, 0],
            "dilation": [1, 1],
            "groups": 1,
            "activation": "none",
            **UNCHOSEN,
        }
        graph.ops[place] = Op("conv", pad.name, first.inputs, pad.output, attributes)
        return True
    return False


def _step_before(
    op: Op, dim: int, graph: Graph, users: Mapping[int, list[Op | None]], producers: Mapping[int, Op]
) -> Op | None:
    """The slice in front of an operation, if it takes every so many-th place of a whole dimension."""
    found = producers.get(op.inputs[0])
    if found is None or found.kind != "slice" or len(users[found.output]) != 1:
        return None
    a, shape = found.attributes, graph.shape(found.inputs[0])
    return found if len(shape) == 4 and (a["dim"], a["start"], a["stop"]) == (dim, 0, shape[dim]) else None


def _pads_channels_with_zeros(pad: Op) -> bool:
    a = pad.attributes
    others = [pair for dim, pair in enumerate(a["padding"]) if dim != 1]
    return a["value"] == 0 and not any(map(any, others))


def _fold_scale_shift(graph: Graph) -> bool:
    """BatchNorm into the convolution or linear layer before it: (W·s)x + (b·s + t) for (Wx + b)s + t."""

    def into(layer: Op, op: Op) -> Op | None:
        if layer.kind not in KERNELS or len(layer.inputs) > 1 or layer.attributes["activation"] != "none":
            return None
        if layer.kind == "linear" and len(graph.shape(layer.output)) != 2:
            return None
        scale = graph.weights[op.attributes["scale"]].astype(np.float64)
        shift = graph.weights[op.attributes["shift"]].astype(np.float64)
        weight, bias = layer.attributes["weight"], layer.attributes["bias"]
        numbers = graph.weights[weight].astype(np.float64)
        if bias is not None:
            shift = shift + graph.weights[bias] * scale
        folded = numbers * scale.reshape(-1, *(1,) * (numbers.ndim - 1))
        new_weight = _renewed(graph, weight, folded)
        new_bias = graph.add_weight(f"{layer.name}.bias", shift.astype(np.float32))
        attributes = {**layer.attributes, "weight": new_weight, "bias": new_bias}
        return replace(layer, attributes={**attributes, "activation": op.attributes["activation"]})

    return _fuse_into_input(graph, "scale_shift", into)


def _renewed(graph: Graph, name: str, numbers: np.ndarray) -> str:  # type: ignore[type-arg]
    """New numbers for a weight: under its own name, unless another operation uses that too."""
    used = sum(name in op.weights for op in graph.ops)
    if used > 1:
        return graph.add_weight(name, numbers.astype(np.float32))
    graph.weights[name] = numbers.astype(np.float32)
    return name


def _fuse_activations(graph: Graph) -> bool:
    def into(before: Op, op: Op) -> Op | None:
        if before.kind not in _WITH_ACTIVATION or before.attributes["activation"] != "none":
            return None
        return replace(before, attributes={**before.attributes, "activation": op.attributes["activation"]})

    return _fuse_into_input(graph, "activate", into)


def _fuse_into_input(graph: Graph, kind: str, into: Callable[[Op, Op], Op | None]) -> bool:
    """Fuse one operation of a kind into the one whose result it alone reads."""
    users, producers = graph.users(), {op.output: place for place, op in enumerate(graph.ops)}
    for place, op in enumerate(graph.ops):
        source = producers.get(op.inputs[0]) if op.kind == kind else None
        if source is None or len(users[op.inputs[0]]) != 1:
            continue
        fused = into(graph.ops[source], op)
        if fused is not None:
            graph.ops[source] = replace(fused, output=op.output)
            del graph.ops[place]
            return True
    return False


def _fuse_residuals(graph: Graph) -> bool:
    """A sum of which one term is a layer becomes that layer with a residual, at the place of the sum."""
    users, producers = graph.users(), {op.output: place for place, op in enumerate(graph.ops)}
    for place, op in enumerate(graph.ops):
        if op.kind != "add" or op.inputs[0] == op.inputs[1]:
            continue
        # Of two layers take the later one: its result would have to wait longest for the other's.
        terms = sorted(op.inputs, key=lambda value: producers.get(value, -1), reverse=True)
        for term, other in (terms, terms[::-1]):
            source = producers.get(term)
            if source is None or len(users[term]) != 1 or graph.shape(term) != graph.shape(other):
                continue
            layer = graph.ops[source]
            if (
                layer.kind not in KERNELS
                or len(layer.inputs) > 1
                or layer.attributes["activation"] != "none"
                or graph.shape(other) != graph.shape(op.output)
            ):
                continue
            attributes = {**layer.attributes, "activation": op.attributes["activation"]}
            graph.ops[place] = replace(
                layer, inputs=(*layer.inputs, other), output=op.output, attributes=attributes
            )
            del graph.ops[source]
            return True
    return False


def _replace_value(graph: Graph, old: int, new: int) -> None:
    """Read one value where another was read, and drop the operation that wrote that."""
    graph.ops = [
        replace(op, inputs=tuple(new if i == old else i for i in op.inputs))
        for op in graph.ops
        if op.output != old
    ]
    graph.outputs = [(name, new if value == old else value) for name, value in graph.outputs]

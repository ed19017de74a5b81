"""A plan as an ONNX model with dense weights, for other engines to run the same network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InvalidArgument, MissingExtra
from secateur.runtime.plan import Plan
from secateur.runtime.program import Op
from secateur.runtime.reference import concrete, number_or

_OPSET, _IR_VERSION = 17, 8  # old enough for every engine that one may compare with
_SIMPLE = {
    "relu": "Relu",
    "hardswish": "HardSwish",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "round": "Round",
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "matmul": "MatMul",
}
_COMPARISONS = {"equal": "Equal", "less": "Less", "less_equal": "LessOrEqual"}


def plan_to_onnx(plan: Plan, *, batch: int) -> bytes:
    """The network of a plan as a serialised ONNX model.

    BatchNorm is folded as in the plan, zeros are stored as zeros. The batch size is fixed, so that
    an engine can optimise for it.

    Args:
        plan: Without operations in torch.
        batch: Batch size, at least 1.

    Raises:
        MissingExtra: if the package `onnx` is not installed.
        InvalidArgument: if the plan has an operation that ONNX has not.
    """
    return _Writer(plan, batch).model()


class _Writer:
    """Collects nodes and initialisers; a value of the program is called v and its id."""

    def __init__(self, plan: Plan, batch: int) -> None:
        try:
            import onnx  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtra("ONNX models need the package onnx: pip install 'secateur[bench]'.") from error
        self._onnx: Any = onnx
        self._plan, self._batch = plan, batch
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._stored: dict[tuple[str, bool], str] = {}

    def model(self) -> bytes:
        """The whole model."""
        program = self._plan.program
        for op in program.ops:
            self._add(op)
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes,
            "secateur",
            [self._info(name, value) for name, value in program.inputs],
            [self._info(f"out_{name}", value) for name, value in program.outputs],
            self._weights,
        )
        # Inputs and outputs keep the names that people gave them.
        for name, value in program.inputs:
            graph.node.insert(0, helper.make_node("Identity", [name], [f"v{value}"]))
        for name, value in program.outputs:
            graph.node.append(helper.make_node("Identity", [f"v{value}"], [f"out_{name}"]))
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()

    def _info(self, name: str, value: int) -> Any:  # noqa: ANN401
        found = self._plan.program.values[value]
        kind = self._onnx.TensorProto.INT64 if found.dtype == "i64" else self._onnx.TensorProto.FLOAT
        return self._onnx.helper.make_tensor_value_info(name, kind, concrete(found.shape, self._batch))

    def _node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: object) -> str:
        name = output or f"t{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _constant(self, numbers: NDArray[Any]) -> str:
        name = f"c{len(self._weights)}"
        self._weights.append(self._onnx.numpy_helper.from_array(np.asarray(numbers, order="C"), name))
        return name

    def _number(self, x: float) -> str:
        return self._constant(np.array(x, np.float32))

    def _integers(self, x: Sequence[int]) -> str:
        return self._constant(np.array(x, np.int64))

    def _weight(self, name: str, *, turned: bool = False) -> str:
        if (name, turned) not in self._stored:
            numbers = self._plan.weights[name].to_dense()
            self._stored[name, turned] = self._constant(numbers.T if turned else numbers)
        return self._stored[name, turned]

    def _add(self, op: Op) -> None:
        inputs = [f"v{i}" for i in op.inputs]
        method = getattr(self, f"_write_{op.kind}", None)
        if op.kind in _SIMPLE:
            found = self._node(_SIMPLE[op.kind], inputs)
        elif op.kind in _COMPARISONS:
            condition = self._node(_COMPARISONS[op.kind], inputs)
            found = self._node("Cast", [condition], to=self._onnx.TensorProto.FLOAT)
        elif method is not None:
            found = method(op, inputs)
        else:
            raise InvalidArgument(
                f"ONNX has nothing like {op.kind} {op.name!r}, so no other engine can run this plan."
            )
        activation = op.attributes.get("activation", "none")
        self._node("Identity", [self._activated(found, activation)], f"v{op.output}")

    def _activated(self, x: str, activation: str) -> str:
        if activation == "none":
            return x
        if activation in _SIMPLE:
            return self._node(_SIMPLE[activation], [x])
        if activation == "relu6":
            return self._node("Clip", [x, self._number(0), self._number(6)])
        if activation == "log1p":
            return self._node("Log", [self._node("Add", [x, self._number(1)])])
        if activation == "silu":
            return self._node("Mul", [x, self._node("Sigmoid", [x])])
        if activation == "hardsigmoid":
            return self._node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        return self._gelu(x) if activation == "gelu" else self._gelu_tanh(x)

    def _gelu(self, x: str) -> str:
        """In the form that the engines recognise and fuse."""
        erf = self._node("Erf", [self._node("Div", [x, self._number(2**0.5)])])
        product = self._node("Mul", [x, self._node("Add", [erf, self._number(1)])])
        return self._node("Mul", [product, self._number(0.5)])

    def _gelu_tanh(self, x: str) -> str:
        cube = self._node("Mul", [self._node("Mul", [x, x]), self._node("Mul", [x, self._number(0.044715)])])
        inner = self._node("Mul", [self._node("Add", [x, cube]), self._number((2 / math.pi) ** 0.5)])
        tanh = self._node("Add", [self._node("Tanh", [inner]), self._number(1)])
        return self._node("Mul", [self._node("Mul", [x, self._number(0.5)]), tanh])

    def _write_activate(self, op: Op, inputs: list[str]) -> str:
        return inputs[0]

    def _layer_rest(self, found: str, inputs: list[str]) -> str:
        return self._node("Add", [found, inputs[1]]) if len(inputs) == 2 else found

    def _write_conv(self, op: Op, inputs: list[str]) -> str:
        a = op.attributes
        bias = [] if a["bias"] is None else [self._weight(a["bias"])]
        options = {
            "strides": a["stride"],
            "pads": a["padding"],
            "dilations": a["dilation"],
            "group": a["groups"],
        }
        found = self._node("Conv", [inputs[0], self._weight(a["weight"]), *bias], **options)
        return self._layer_rest(found, inputs)

    def _write_linear(self, op: Op, inputs: list[str]) -> str:
        a = op.attributes
        if len(self._plan.program.values[op.inputs[0]].shape) == 2:
            bias = [] if a["bias"] is None else [self._weight(a["bias"])]
            found = self._node("Gemm", [inputs[0], self._weight(a["weight"]), *bias], transB=1)
        else:
            found = self._node("MatMul", [inputs[0], self._weight(a["weight"], turned=True)])
            if a["bias"] is not None:
                found = self._node("Add", [found, self._weight(a["bias"])])
        return self._layer_rest(found, inputs)

    def _write_scale_shift(self, op: Op, inputs: list[str]) -> str:
        shape = (-1,) + (1,) * (len(self._plan.program.values[op.inputs[0]].shape) - 2)
        scale, shift = (
            self._constant(self._plan.weights[op.attributes[key]].to_dense().reshape(shape))
            for key in ("scale", "shift")
        )
        return self._node("Add", [self._node("Mul", [inputs[0], scale]), shift])

    def _write_clip(self, op: Op, inputs: list[str]) -> str:
        low, high = number_or(op.attributes["low"], -np.inf), number_or(op.attributes["high"], np.inf)
        return self._node("Clip", [inputs[0], self._number(float(low)), self._number(float(high))])

    def _write_convert(self, op: Op, inputs: list[str]) -> str:
        types = self._onnx.TensorProto
        return self._node("Cast", inputs, to=types.FLOAT if op.attributes["dtype"] == "f32" else types.INT64)

    def _write_cumsum(self, op: Op, inputs: list[str]) -> str:
        return self._node("CumSum", [inputs[0], self._constant(np.array(op.attributes["dim"], np.int64))])

    def _write_where(self, op: Op, inputs: list[str]) -> str:
        condition = self._node("Cast", [inputs[0]], to=self._onnx.TensorProto.BOOL)
        return self._node("Where", [condition, *inputs[1:]])

    def _write_max_pool(self, op: Op, inputs: list[str]) -> str:
        a = op.attributes
        return self._node("MaxPool", inputs, kernel_shape=a["kernel"], strides=a["stride"], pads=a["padding"])

    def _write_avg_pool(self, op: Op, inputs: list[str]) -> str:
        a = op.attributes
        options = {"kernel_shape": a["kernel"], "strides": a["stride"], "pads": a["padding"]}
        return self._node("AveragePool", inputs, count_include_pad=int(a["count_padding"]), **options)

    def _write_mean(self, op: Op, inputs: list[str]) -> str:
        dims, keep = op.attributes["dims"], op.attributes["keep"]
        if sorted(dims) == [2, 3] and len(self._plan.program.values[op.inputs[0]].shape) == 4:
            pooled = self._node("GlobalAveragePool", inputs)
            return pooled if keep else self._node("Flatten", [pooled])
        return self._node("ReduceMean", inputs, axes=dims, keepdims=int(keep))

    def _write_sum(self, op: Op, inputs: list[str]) -> str:
        return self._node(
            "ReduceSum", [*inputs, self._integers(op.attributes["dims"])], keepdims=int(op.attributes["keep"])
        )

    def _write_softmax(self, op: Op, inputs: list[str]) -> str:
        return self._node("Softmax", inputs, axis=op.attributes["dim"])

    def _write_layer_norm(self, op: Op, inputs: list[str]) -> str:
        a = op.attributes
        shape = self._plan.program.values[op.output].shape[-a["n_dims"] :]
        ones = self._constant(np.ones(shape, np.float32)) if a["scale"] is None else self._weight(a["scale"])
        shift = [] if a["shift"] is None else [self._weight(a["shift"])]
        options = {"axis": -a["n_dims"], "epsilon": a["eps"]}
        return self._node("LayerNormalization", [inputs[0], ones, *shift], **options)

    def _write_attention(self, op: Op, inputs: list[str]) -> str:
        shapes = [self._plan.program.values[i].shape for i in op.inputs]
        order = [*range(len(shapes[1]) - 2), len(shapes[1]) - 1, len(shapes[1]) - 2]
        scores = self._node("MatMul", [inputs[0], self._node("Transpose", [inputs[1]], perm=order)])
        scores = self._node("Mul", [scores, self._number(op.attributes["factor"])])
        if op.attributes["causal"]:
            seen = np.tri(shapes[0][-2], shapes[1][-2], dtype=np.bool_)
            hidden = np.where(seen, 0, -np.inf).astype(np.float32)
            scores = self._node("Add", [scores, self._constant(hidden)])
        if len(inputs) == 4:
            scores = self._node("Add", [scores, inputs[3]])
        return self._node("MatMul", [self._node("Softmax", [scores], axis=-1), inputs[2]])

    def _write_embedding(self, op: Op, inputs: list[str]) -> str:
        return self._node("Gather", [self._weight(op.attributes["weight"]), inputs[0]])

    def _write_reshape(self, op: Op, inputs: list[str]) -> str:
        return self._node("Reshape", [inputs[0], self._shape_of(op)])

    def _write_expand(self, op: Op, inputs: list[str]) -> str:
        return self._node("Expand", [inputs[0], self._shape_of(op)])

    def _shape_of(self, op: Op) -> str:
        return self._integers(concrete(self._plan.program.values[op.output].shape, self._batch))

    def _write_permute(self, op: Op, inputs: list[str]) -> str:
        return self._node("Transpose", inputs, perm=op.attributes["dims"])

    def _write_slice(self, op: Op, inputs: list[str]) -> str:
        parts = [self._integers([op.attributes[key]]) for key in ("start", "stop", "dim", "step")]
        return self._node("Slice", [inputs[0], *parts])

    def _write_cat(self, op: Op, inputs: list[str]) -> str:
        return self._node("Concat", inputs, axis=op.attributes["dim"])

    def _write_pad(self, op: Op, inputs: list[str]) -> str:
        pairs: Sequence[Mapping[int, int]] = op.attributes["padding"]
        edges = [pair[side] for side in (0, 1) for pair in pairs]
        value = self._number(float(number_or(op.attributes["value"], -np.inf)))
        return self._node("Pad", [inputs[0], self._integers(edges), value])

    def _write_constant(self, op: Op, inputs: list[str]) -> str:
        return self._weight(op.attributes["weight"])

"""What the passes have in common: constants, linear layers, and putting one value for another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

MICROSOFT = "com.microsoft"
_ELEMENTWISE = ("Add", "Cast", "Div", "Mul", "Sub", "Tanh")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_WEIGHT_FIRST = ("RowQuantizedProduct", "DequantizeLinear", "GatherBlockQuantized")
_TABLES = ("GroupQueryAttention", "RotaryEmbedding", "Attention", "Slice", "Split", "Reshape")


@dataclass(frozen=True, slots=True)
class Linear:
    """A product with a constant matrix: ``output = input @ weight``."""

    node: Any
    input: Any
    output: Any
    name: str
    """Of the weight in the source."""
    is_head: bool
    """Whether it makes the logits, but for what is done to each of them alone."""
    factor: Any
    """The constant, which the graph may hold transposed."""
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """[K, N] of the weight."""
        rows, columns = map(int, self.factor.const_value.shape)
        return (columns, rows) if self.transposed else (rows, columns)

    def weight(self) -> np.ndarray[Any, Any]:
        """f32[K, N], read anew: hold it no longer than needed."""
        values: np.ndarray[Any, Any] = self.factor.const_value.numpy()
        return values.T if self.transposed else values


def linear_layers(graph: Any) -> Iterator[Linear]:
    """Every MatMul whose second factor is a constant, also one seen through a Transpose."""
    head = head_product(graph)
    for node in list(graph):
        if not is_linear(node):
            continue
        factor = node.inputs[1]
        transposed = not factor.is_initializer()
        if transposed:
            factor = factor.producer().inputs[0]
        is_head = node is head
        yield Linear(
            node, node.inputs[0], node.outputs[0], factor.name, is_head, factor, transposed
        )


def is_linear(node: Any) -> bool:
    """Whether it is a MatMul whose second factor is a constant, perhaps through a Transpose."""
    return node.op_type == "MatMul" and (
        node.inputs[1].is_initializer() or _is_transposed_constant(node.inputs[1])
    )


def head_product(graph: Any) -> Any | None:
    """The node that makes the logits: between them and it there are only elementwise nodes."""
    value = next((value for value in graph.outputs if value.name == "logits"), None)
    while value is not None and value.producer() is not None:
        node = value.producer()
        if node.op_type not in _ELEMENTWISE:
            return node
        value = next((v for v in node.inputs if v.producer() is not None), None)
    return None


def _is_transposed_constant(value: Any) -> bool:
    node = value.producer()
    return (
        node is not None
        and node.op_type == "Transpose"
        and node.inputs[0].is_initializer()
        and len(node.inputs[0].shape) == 2
    )


def constant(graph: Any, name: str, array: np.ndarray[Any, Any]) -> Any:
    """An initializer of that name, the existing one if there is one."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    graph.register_initializer(value)
    return value


def lazy_constant(
    graph: Any, name: str, shape: Sequence[int], make: Callable[[], np.ndarray[Any, Any]]
) -> Any:
    """A new fp32 initializer whose values are made when they are needed."""
    tensor = ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(make()), name=name),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(shape),
        name=name,
    )
    value = ir.val(name, const_value=tensor)
    graph.register_initializer(value)
    return value


def graph_input(graph: Any, name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
    """A new input of the graph."""
    value = ir.val(name, dtype=dtype, shape=shape)
    graph.inputs.append(value)
    return value


def insert(graph: Any, before: Any, operator: str, inputs: Sequence[Any], **attributes: Any) -> Any:
    """The first output of a new node, which comes before another."""
    node = ir.node(operator, list(inputs), attributes)
    graph.insert_before(before, node)
    return node.outputs[0]


def replace(graph: Any, old: Any, new: Any) -> None:
    """Use ``new`` wherever ``old`` was used, as a graph output too, and drop what became dead."""
    node = old.producer()
    if old.is_graph_output():
        new.dtype, new.shape = old.dtype, old.shape
        graph.outputs[list(graph.outputs).index(old)] = new
        old.name, new.name = f"{old.name}_replaced", old.name
    ir.convenience.replace_all_uses_with(old, new)
    remove_dead(graph, node)


def remove_dead(graph: Any, node: Any) -> None:
    """Remove a node that nothing uses, and in turn its producers and constants."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in inputs:
        if value.producer() is not None and value.producer().graph is graph:
            remove_dead(graph, value.producer())
        elif value.is_initializer() and not value.uses():
            graph.initializers.pop(value.name, None)


def attention_nodes(graph: Any) -> list[Any]:
    """The GroupQueryAttention nodes, first layer first."""
    return [node for node in graph if node.op_type == "GroupQueryAttention"]


def unpack_heads(graph: Any, node: Any) -> None:
    """Split the packed queries, keys and values of a GroupQueryAttention node."""
    queries, keys = (node.attributes[name].value for name in ("num_heads", "kv_num_heads"))
    size = int(node.inputs[3].shape[3])  # of a head, as the cache has it
    widths = np.array([queries * size, keys * size, keys * size], dtype=np.int64)
    sizes = constant(graph, f"split_{widths[0]}_{widths[1]}_{widths[2]}", widths)
    split = ir.node("Split", [node.inputs[0], sizes], {"axis": -1}, num_outputs=3)
    graph.insert_before(node, split)
    for index, part in enumerate(split.outputs):
        node.replace_input_with(index, part)


def weights_of(node: Any) -> int:
    """How many of the model's weights a node holds, its scales and tables left out."""
    constants = [value for value in node.inputs if value is not None and value.is_initializer()]
    if node.op_type == "MatMulNBits":
        return int(node.attributes["K"].value * node.attributes["N"].value)
    if node.op_type in _WEIGHT_FIRST:
        return int(constants[0].const_value.size) if constants else 0
    if node.op_type in _TABLES:
        return 0
    sizes = (value.const_value.size for value in constants if value.const_value.dtype in _FLOATS)
    return sum(int(size) for size in sizes if size > 1)

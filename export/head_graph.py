"""A head's graph, node by node, in the ``ort`` or the ``standard`` dialect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import nn

from specplug.bundle import Dialect
from specplug.engines.head_states import STATES
from specplug.export.head import Head, HeadShape
from specplug.export.passes import (
    FuseSilu,
    PackGateUp,
    RotateOutside,
    ScoresFrom,
    StandardAttention,
    StandardOperators,
)
from specplug.export.passes.editing import MICROSOFT, constant
from specplug.types import HIDDEN_STATES

_OPSET = 24
_IR_VERSION = 11
_QUERY_SEQLENS = 16  # input of GroupQueryAttention


def build_head(head: Head, dialect: Dialect = "ort", table: str = "embed_tokens.weight") -> Any:
    """The graph of a head in fp32.

    Args:
        head: the module.
        dialect: the graph's.
        table: what the embedding is called, so that it may be found to be the target's.

    A call's tokens come with hidden states of two kinds, of which either may have no rows:
    ``features``, the target's, for the first tokens, and ``fed_back``, the head's own, for the
    others. So context and drafts, or both at once, are calls of one graph.
    """
    return finish(_HeadBuilder(head).build(table), dialect)


def finish(model: Any, dialect: Dialect) -> Any:
    """A graph as it was written, in the form that engines run."""
    ir.passes.Sequential(RotateOutside(), ScoresFrom(), FuseSilu(), PackGateUp())(model)
    if dialect == "standard":
        ir.passes.Sequential(StandardAttention(), StandardOperators())(model)
        model.opset_imports.pop(MICROSOFT, None)
    return model


class GraphBuilder:
    """What the graphs of heads are made of.

    Args:
        module: the head, whose weights they get.
        shape: of it.
    """

    def __init__(self, module: nn.Module, shape: HeadShape) -> None:
        self._shape = shape
        self._weights = {name: w.detach().numpy() for name, w in module.state_dict().items()}
        self._graph = ir.Graph(
            [], [], nodes=[], opset_imports={"": _OPSET, MICROSOFT: 1}, name="head"
        )

    def _attention(self, read: Any, layer: int = 0) -> Any:
        """What a layer's heads find, side by side, f32[B, T, heads * size of a head]."""
        shape, prefix = self._shape, f"layers.{layer}.self_attn"
        names = [f"{prefix}.{part}_proj.weight" for part in "qkv"]
        packed = np.concatenate([self._weights[name] for name in names]).T
        values: list[Any] = [
            self._node("MatMul", read, constant(self._graph, "__".join(names) + "_t", packed)),
            None,
            None,
        ]
        if shape.query_key_norm:
            counts = np.array([shape.heads, shape.key_heads, shape.key_heads])
            values = self._split(values[0], counts * shape.head_size)
            for index, name in enumerate(("q_norm", "k_norm")):
                values[index] = self._head_norm(values[index], f"{prefix}.{name}")
        cache: list[int | str] = ["batch", shape.key_heads, "past_len", shape.head_size]
        past = [
            self._input(f"past_key_values.{layer}.{kind}", ir.DataType.FLOAT, cache)
            for kind in ("key", "value")
        ]
        lengths = [
            self._input("seqlens_k", ir.DataType.INT32, ["batch"]),
            self._input("total_sequence_length", ir.DataType.INT32, []),
        ]
        queries = self._input("query_seqlens", ir.DataType.INT32, ["batch"])
        tables = [
            constant(self._graph, f"rotary_{kind}_0", table)
            for kind, table in (("cos", shape.rotary.cos), ("sin", shape.rotary.sin))
        ]
        inputs = [*values, *past, *lengths, *tables]
        inputs += [None] * (_QUERY_SEQLENS - len(inputs))
        node = ir.node(
            "GroupQueryAttention",
            [*inputs, queries],
            {
                "num_heads": shape.heads,
                "kv_num_heads": shape.key_heads,
                "scale": shape.head_size**-0.5,
                "do_rotary": 1,
                "rotary_interleaved": int(shape.rotary.interleaved),
            },
            domain=MICROSOFT,
            num_outputs=3,
        )
        self._graph.append(node)
        for kind, value in zip(("key", "value"), node.outputs[1:], strict=True):
            value.name, value.dtype = f"present.{layer}.{kind}", ir.DataType.FLOAT
            value.shape = ir.Shape([*cache[:2], "total_len", cache[3]])
            self._graph.outputs.append(value)
        return node.outputs[0]

    def _mlp(self, read: Any, layer: int) -> Any:
        gate, up = (self._linear(read, f"layers.{layer}.mlp.{n}_proj") for n in ("gate", "up"))
        silu = self._node("Mul", gate, self._node("Sigmoid", gate))
        return self._linear(self._node("Mul", silu, up), f"layers.{layer}.mlp.down_proj")

    def _head_norm(self, value: Any, name: str) -> Any:
        apart = np.array([0, 0, -1, self._shape.head_size], dtype=np.int64)
        joined = np.array([0, 0, -1], dtype=np.int64)
        split = self._node("Reshape", value, constant(self._graph, "heads_apart", apart))
        normed = self._norm(split, name)
        return self._node("Reshape", normed, constant(self._graph, "heads_side_by_side", joined))

    # --- nodes --------------------------------------------------------------------------------

    def _node(self, operator: str, *inputs: Any, **attributes: Any) -> Any:
        node = ir.node(operator, list(inputs), attributes)
        self._graph.append(node)
        return node.outputs[0]

    def _split(self, value: Any, sizes: np.ndarray[Any, Any]) -> list[Any]:
        wanted = constant(self._graph, "split_" + "_".join(map(str, sizes)), sizes)
        node = ir.node("Split", [value, wanted], {"axis": -1}, num_outputs=len(sizes))
        self._graph.append(node)
        return list(node.outputs)

    def _linear(self, value: Any, name: str) -> Any:
        weight = self._weights[f"{name}.weight"].T
        return self._node("MatMul", value, constant(self._graph, f"{name}.weight_t", weight))

    def _norm(self, value: Any, name: str) -> Any:
        weight = constant(self._graph, f"{name}.weight", self._weights[f"{name}.weight"])
        return self._node("RMSNormalization", value, weight, axis=-1, epsilon=self._shape.epsilon)

    def _sum_norm(self, one: Any, other: Any, name: str) -> tuple[Any, Any]:
        """The normed sum, and the sum."""
        weight = constant(self._graph, f"{name}.weight", self._weights[f"{name}.weight"])
        node = ir.node(
            "SkipSimplifiedLayerNormalization",
            [one, other, weight],
            {"epsilon": self._shape.epsilon},
            domain=MICROSOFT,
            num_outputs=4,
        )
        self._graph.append(node)
        return node.outputs[0], node.outputs[3]

    def _model(self) -> Any:
        return ir.Model(self._graph, ir_version=_IR_VERSION)

    def _input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
        """The input of that name, the existing one if there is one."""
        for value in self._graph.inputs:
            if value.name == name:
                return value
        value = ir.val(name, dtype=dtype, shape=shape)
        self._graph.inputs.append(value)
        return value

    def _output(self, value: Any, name: str, size: int) -> None:
        value.name, value.dtype = name, ir.DataType.FLOAT
        value.shape = ir.Shape(["batch", "sequence_len", size])
        self._graph.outputs.append(value)


class _HeadBuilder(GraphBuilder):
    def __init__(self, head: Head) -> None:
        super().__init__(head, head.shape)

    def build(self, embedding: str) -> Any:
        """The model."""
        shape, size = self._shape, self._shape.hidden_size
        tokens = self._input("input_ids", ir.DataType.INT64, ["batch", "sequence_len"])
        features, fed_back = (
            self._input(name, ir.DataType.FLOAT, ["batch", f"{name}_len", width])
            for name, width in zip(STATES, (shape.features, size), strict=True)
        )
        table = constant(self._graph, embedding, self._weights["embed_tokens.weight"])
        embeds = self._norm(self._node("Gather", table, tokens), "layers.0.input_layernorm")
        given = self._node("Concat", self._fused(features), fed_back, axis=1)
        normed = self._norm(given, "layers.0.hidden_norm")
        read = self._node("Concat", embeds, normed, axis=-1)
        attended = self._linear(self._attention(read), "layers.0.self_attn.o_proj")
        residual = normed if shape.norm_before_residual else given
        before, total = self._sum_norm(residual, attended, "layers.0.post_attention_layernorm")
        scored, hidden = self._sum_norm(total, self._mlp(before, 0), "norm")
        own = self._node("Identity", scored if shape.norm_output else hidden)
        logits = self._linear(scored, "lm_head")
        self._output(logits, "logits", shape.vocab_size)
        self._output(own, HIDDEN_STATES, size)
        return self._model()

    def _fused(self, features: Any) -> Any:
        shape = self._shape
        if shape.norm_before_fc:
            features = self._norm(features, "input_norm")
        if shape.fc_norm:
            count = len(shape.layers)
            sizes = np.full(count, shape.target_size, dtype=np.int64)
            parts = self._split(features, sizes)
            normed = [self._norm(part, f"fc_norm.{n}") for n, part in enumerate(parts)]
            features = self._node("Concat", *normed, axis=-1)
        return self._linear(features, "fc")

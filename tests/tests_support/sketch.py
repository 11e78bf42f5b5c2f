"""Tiny graphs, built by hand and run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir

from specplug import EngineOptions
from specplug.engines.ort_session import open_session

FLOAT, INT64, INT32 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32
RNG = np.random.default_rng(0)


class Sketch:
    """A graph under construction."""

    def __init__(self) -> None:
        self.graph = ir.Graph(
            [], [], nodes=[], opset_imports={"": 24, "com.microsoft": 1}, name="sketch"
        )

    def input(self, name: str, dtype: Any, shape: list[Any]) -> Any:
        value = ir.val(name, dtype=dtype, shape=shape)
        self.graph.inputs.append(value)
        return value

    def weight(self, name: str, *shape: int) -> Any:
        # By name, so that no test's numbers depend on which ran before.
        array = np.random.default_rng(list(name.encode())).normal(size=shape).astype(np.float32)
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.graph.register_initializer(value)
        return value

    def node(self, op: str, *inputs: Any, domain: str = "", outputs: int = 1, **attributes: Any):
        made = ir.node(op, list(inputs), attributes, domain=domain, num_outputs=outputs)
        self.graph.append(made)
        return made.outputs[0] if outputs == 1 else made.outputs

    def output(self, value: Any, name: str, dtype: Any = FLOAT) -> None:
        value.name, value.dtype = name, dtype
        self.graph.outputs.append(value)

    def model(self) -> Any:
        return ir.Model(self.graph, ir_version=11)


def ops(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def run(model: Any, **inputs: np.ndarray) -> list[np.ndarray]:
    data = ir.serde.serialize_model(model).SerializeToString()
    return open_session(data, EngineOptions()).run(None, inputs)


def attention(heads: int = 2, size: int = 8) -> Any:
    """Packed QKV into GroupQueryAttention, lengths from a mask as mobius writes them."""
    sketch = Sketch()
    sketch.input("input_ids", INT64, ["batch", "sequence_len"])
    qkv = sketch.input("qkv", FLOAT, ["batch", "sequence_len", 3 * heads * size])
    mask = sketch.input("attention_mask", INT64, ["batch", "total"])
    past = [
        sketch.input(f"past_key_values.0.{kind}", FLOAT, ["batch", heads, "past", size])
        for kind in ("key", "value")
    ]
    one = ir.val("one", const_value=ir.tensor(np.array(1, dtype=np.int64), name="one"))
    axis = ir.val("axis", const_value=ir.tensor(np.array([1], dtype=np.int64), name="axis"))
    sketch.graph.register_initializer(one)
    sketch.graph.register_initializer(axis)
    summed = sketch.node("ReduceSum", mask, axis, keepdims=0)
    last = sketch.node("Cast", sketch.node("Sub", summed, one), to=INT32.value)
    shape = sketch.node("Shape", mask)
    total = sketch.node("Cast", sketch.node("Gather", shape, one), to=INT32.value)
    attended, key, value = sketch.node(
        "GroupQueryAttention",
        qkv, None, None, *past, last, total,
        domain="com.microsoft", outputs=3, num_heads=heads, kv_num_heads=heads,
    )  # fmt: skip
    sketch.output(sketch.node("Relu", attended), "attended")
    sketch.output(key, "present.0.key")
    sketch.output(value, "present.0.value")
    return sketch.model()


def attend(
    model: Any, width: int, past: int, *, chosen: list[int] | None = None, **more: np.ndarray
) -> np.ndarray:
    """The attention of a call of the first ``width`` of nine tokens, or of those chosen."""
    shapes = {value.name: value.shape for value in model.graph.inputs}
    size, packed = shapes["past_key_values.0.key"][3], shapes["qkv"][2]
    cache = np.random.default_rng(7).normal(size=(1, 2, past, size)).astype(np.float32)
    qkv = np.random.default_rng(8).normal(size=(1, 9, packed)).astype(np.float32)
    qkv = np.ascontiguousarray(qkv[:, chosen or range(width)])
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.zeros((1, width), np.int64),
        "qkv": qkv,
        "past_key_values.0.key": cache,
        "past_key_values.0.value": cache,
        "seqlens_k": np.array([past + width - 1], np.int32),
        "total_sequence_length": np.array(past + width, np.int32),
        "query_seqlens": np.array([width], np.int32),
        "attention_mask": np.ones((1, past + width), np.int64),
        **more,
    }
    return run(model, **{k: v for k, v in feeds.items() if k in shapes})[0]

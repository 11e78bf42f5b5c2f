"""A block head's graph, in the ``standard`` dialect: the others' attention is causal in a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.engines.head_states import STATES
from specplug.export.block_head import BlockHead
from specplug.export.head_graph import GraphBuilder, finish
from specplug.export.passes.editing import constant


def build_block_head(head: BlockHead, table: str = "embed_tokens.weight") -> Any:
    """The graph of a block head in fp32.

    Args:
        head: the module.
        table: what the embedding is called, so that it may be found to be the target's.

    A call's tokens begin with those that ``features`` are of, which are not looked at; those after
    them are the block, of which there may be none. Logits are those of the block's tokens: of the
    others they mean nothing.
    """
    return finish(_BlockBuilder(head).build(table), "standard")


class _BlockBuilder(GraphBuilder):
    def __init__(self, head: BlockHead) -> None:
        super().__init__(head, head.shape)
        self._depth = head.shape.depth

    def build(self, embedding: str) -> Any:
        """The model."""
        shape = self._shape
        tokens = self._input("input_ids", ir.DataType.INT64, ["batch", "sequence_len"])
        features = self._input(
            STATES[0], ir.DataType.FLOAT, ["batch", f"{STATES[0]}_len", shape.features]
        )
        self._first = self._node("Shape", features, start=1, end=2)
        context = self._norm(self._linear(features, "fc"), "hidden_norm")
        table = constant(self._graph, embedding, self._weights["embed_tokens.weight"])
        hidden = self._node("Gather", table, self._block(tokens))
        own = self._norm(hidden, "layers.0.input_layernorm")
        for layer in range(self._depth):
            read = self._node("Concat", context, own, axis=1)
            # The context asks nothing, but a call's queries and keys are one product.
            found = self._block(self._attention(read, layer))
            attended = self._linear(found, f"layers.{layer}.self_attn.o_proj")
            name = f"layers.{layer}.post_attention_layernorm"
            before, hidden = self._sum_norm(hidden, attended, name)
            last = layer + 1 == self._depth
            following = "norm" if last else f"layers.{layer + 1}.input_layernorm"
            own, hidden = self._sum_norm(hidden, self._mlp(before, layer), following)
        logits = self._linear(self._node("Concat", context, own, axis=1), "lm_head")
        self._output(logits, "logits", shape.vocab_size)
        return self._model()

    def _block(self, values: Any) -> Any:
        """The rows of the block, of those of a whole call."""
        end = constant(self._graph, "block_end", np.array([np.iinfo(np.int64).max]))
        axis = constant(self._graph, "block_axis", np.array([1], dtype=np.int64))
        return self._node("Slice", values, self._first, end, axis)

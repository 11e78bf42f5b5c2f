"""Small graph edits that turn mobius's graphs into the ``ort`` dialect. One file, one job each.

A pass is called with a model and returns ``PassResult(model, modified)``.
"""

from specplug.export.passes.dequantize_blocks import DequantizeBlocks
from specplug.export.passes.explicit_lengths import ExplicitLengths
from specplug.export.passes.fuse_silu import FuseSilu
from specplug.export.passes.gate_layers import GateLayers
from specplug.export.passes.gather_blocks import GatherBlocks
from specplug.export.passes.half_graph import HalfGraph
from specplug.export.passes.half_weights import HalfWeights
from specplug.export.passes.hidden_states import HiddenStates
from specplug.export.passes.next_token import NextToken
from specplug.export.passes.pack_gate_up import PackGateUp
from specplug.export.passes.pad_attention import PadAttention
from specplug.export.passes.quantize_nbits import QuantizeNBits
from specplug.export.passes.quantize_w8a8 import QuantizeW8A8
from specplug.export.passes.rotate_outside import RotateOutside
from specplug.export.passes.scores_from import ScoresFrom
from specplug.export.passes.single_logits import SingleLogits
from specplug.export.passes.skip_layers import SkipLayers
from specplug.export.passes.source_attention import SourceAttention
from specplug.export.passes.standard_attention import StandardAttention
from specplug.export.passes.standard_operators import StandardOperators
from specplug.export.passes.tree_attention import TreeAttention

__all__ = [
    "DequantizeBlocks",
    "ExplicitLengths",
    "FuseSilu",
    "GateLayers",
    "GatherBlocks",
    "HalfGraph",
    "HalfWeights",
    "HiddenStates",
    "NextToken",
    "PackGateUp",
    "PadAttention",
    "QuantizeNBits",
    "QuantizeW8A8",
    "RotateOutside",
    "ScoresFrom",
    "SingleLogits",
    "SkipLayers",
    "SourceAttention",
    "StandardAttention",
    "StandardOperators",
    "TreeAttention",
]

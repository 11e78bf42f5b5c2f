"""Write tests/data/speculators/*: tiny heads by the ``speculators`` library, with its own logits.

Run in an environment of its own, where the library is installed (0.9.0 made what is here):

    pip install speculators==0.9.0 torch==2.13.0
    python tests/data/make_speculators.py
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, Qwen3Config

HERE = Path(__file__).parent / "speculators"
VOCAB, HIDDEN, TOKENS, STEPS = 260, 64, 12, 3
HEADS: dict[str, dict[str, Any]] = {
    "llama": {"draft_vocab_size": 96},
    "llama-normed": {
        "draft_vocab_size": VOCAB,
        "norm_before_residual": True,
        "norm_before_fc": True,
        "norm_output": True,
    },
    "qwen3": {"draft_vocab_size": 96, "fc_norm": True},
}


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    for number, (name, options) in enumerate(HEADS.items()):
        write(name, number, options)


def write(name: str, seed: int, options: dict[str, Any]) -> None:
    torch.manual_seed(seed)
    layer = (Qwen3Config if name == "qwen3" else LlamaConfig)(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1200,
    )
    layer._attn_implementation = "eager"  # the other kernels want longer sequences
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=layer,
        eagle_aux_hidden_state_layer_ids=[0, 1, 2],
        speculators_config=SpeculatorsConfig(
            algorithm="eagle3",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=STEPS)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(
                name_or_path="somebody/tiny-target", architectures=["LlamaForCausalLM"]
            ),
        ),
        **options,
    )
    model = Eagle3DraftModel(config)
    for key, weight in model.named_parameters():
        weight.data.normal_(1.0 if "norm" in key else 0.0, 0.3)
        weight.data = weight.data.bfloat16().float()
    if options["draft_vocab_size"] < VOCAB:
        known = torch.randperm(VOCAB)[: options["draft_vocab_size"]].sort().values
        t2d = torch.zeros(VOCAB, dtype=torch.bool)
        t2d[known] = True
        model.load_vocab_mappings(t2d, known - torch.arange(len(known)))
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(HERE / name)
    (HERE / name / "config.py").unlink()  # the library's code, which it writes beside its heads
    reference(model.eval(), HERE / name)


@torch.no_grad()
def reference(model: Any, folder: Path) -> None:
    """Logits of a context, and of steps on the library's own outputs, by its training pass."""
    logits: list[torch.Tensor] = []
    hidden = torch.randn(1, TOKENS, 3 * HIDDEN)
    tokens = torch.randint(0, VOCAB, (1, TOKENS))
    hook = model.lm_head.register_forward_hook(lambda *call: logits.append(call[2].clone()))
    model(
        hidden_states=hidden,
        input_ids=tokens,
        document_ids=torch.zeros(1, TOKENS, dtype=torch.long),
        ttt_steps=STEPS,
    )
    hook.remove()
    np.savez(
        folder / "reference.npz",
        tokens=tokens[0].numpy(),
        features=hidden[0].numpy(),
        logits=torch.cat(logits).numpy(),
    )


if __name__ == "__main__":
    main()

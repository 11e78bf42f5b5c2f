"""Write tests/data/speculators/*: tiny heads by the ``speculators`` library, with its own logits.

Run in an environment of its own, where the library is installed (0.9.0 made what is here):

    pip install speculators==0.9.0 torch==2.13.0
    HF_HUB_OFFLINE=1 python tests/data/make_speculators.py
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models.dflash import DFlashSpeculatorConfig
from speculators.models.dflash.core import DFlashDraftModel
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, Qwen3Config

HERE = Path(__file__).parent / "speculators"
VOCAB, HIDDEN, TOKENS, STEPS = 260, 64, 12, 3
BLOCK = 4
EAGLE3: dict[str, dict[str, Any]] = {
    "llama": {"draft_vocab_size": 96},
    "llama-normed": {
        "draft_vocab_size": VOCAB,
        "norm_before_residual": True,
        "norm_before_fc": True,
        "norm_output": True,
    },
    "qwen3": {"draft_vocab_size": 96, "fc_norm": True},
}
DFLASH: dict[str, dict[str, Any]] = {
    "dflash": {"draft_vocab_size": 96},
    "dflash-whole": {"draft_vocab_size": VOCAB, "sample_from_anchor": True},
}


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    for number, (name, options) in enumerate(EAGLE3.items()):
        torch.manual_seed(number)
        config = Eagle3SpeculatorConfig(
            transformer_layer_config=layers(Qwen3Config if name == "qwen3" else LlamaConfig, 1),
            eagle_aux_hidden_state_layer_ids=[0, 1, 2],
            speculators_config=made_for("eagle3", STEPS),
            **options,
        )
        model = Eagle3DraftModel(config)
        write(model, name)
        reference(model.eval(), HERE / name)
    for number, (name, options) in enumerate(DFLASH.items(), start=len(EAGLE3)):
        torch.manual_seed(number)
        config = DFlashSpeculatorConfig(
            transformer_layer_config=layers(Qwen3Config, 2),
            aux_hidden_state_layer_ids=[0, 1, 2],
            block_size=BLOCK,
            mask_token_id=7,
            speculators_config=made_for("dflash", BLOCK - 1),
            **options,
        )
        model = DFlashDraftModel(config)
        write(model, name)
        block_reference(model.eval(), HERE / name)


def layers(kind: Any, count: int) -> Any:
    made = kind(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=count,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1200,
    )
    made._attn_implementation = "eager"  # the other kernels want longer sequences
    return made


def made_for(algorithm: str, tokens: int) -> SpeculatorsConfig:
    return SpeculatorsConfig(
        algorithm=algorithm,
        proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=tokens)],
        default_proposal_method="greedy",
        verifier=VerifierConfig(
            name_or_path="somebody/tiny-target", architectures=["LlamaForCausalLM"]
        ),
    )


def write(model: Any, name: str) -> None:
    count = model.config.draft_vocab_size
    for key, weight in model.named_parameters():
        weight.data.normal_(1.0 if "norm" in key else 0.0, 0.3)
        weight.data = weight.data.bfloat16().float()
    if count < VOCAB:
        known = torch.randperm(VOCAB)[:count].sort().values
        t2d = torch.zeros(VOCAB, dtype=torch.bool)
        t2d[known] = True
        model.load_vocab_mappings(t2d, known - torch.arange(len(known)))
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(HERE / name)
    (HERE / name / "config.py").unlink()  # the library's code, which it writes beside its heads


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


@torch.no_grad()
def block_reference(model: Any, folder: Path) -> None:
    """Logits of the block at every place of a text, and what is the target's in the head."""
    hidden = torch.randn(1, TOKENS, 3 * HIDDEN)
    tokens = torch.randint(0, VOCAB, (1, TOKENS))
    places = TOKENS - BLOCK  # as many as the library has room for
    _, logits, *_ = model._backbone_forward(
        hidden_states=hidden,
        input_ids=tokens,
        loss_mask=torch.ones(1, TOKENS),
        verifier_last_hidden_states=torch.randn(1, TOKENS, HIDDEN),
        document_ids=torch.zeros(1, TOKENS, dtype=torch.long),
        max_anchors=places,
    )
    np.savez_compressed(
        folder / "reference.npz",
        tokens=tokens[0].numpy(),
        features=hidden[0].numpy(),
        logits=logits[0].unflatten(0, (places, BLOCK)).numpy(),
        embedding=model.embed_tokens.weight.numpy(),
        lm_head=model.lm_head.weight.numpy(),
    )


if __name__ == "__main__":
    main()

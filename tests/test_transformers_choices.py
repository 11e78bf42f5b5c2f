"""What ``custom_generate=speculate()`` draws from, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as processing

from specplug import EngineError
from specplug.integrations.transformers import fields, speculate
from specplug.integrations.transformers.choosing import sampling_params
from specplug.sampling import distribution, shape_logits
from tests_support.generating import FAST, PAD, prompts

pytestmark = pytest.mark.usefixtures("one_thread")

# --- sampling -------------------------------------------------------------------------------------

WARPERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.5, 1.7]),
        "top_k": st.sampled_from([1, 5, 60]),
        "top_p": st.sampled_from([0.3, 0.9]),
        "min_p": st.sampled_from([0.02, 0.3]),
        "typical_p": st.sampled_from([0.4, 0.95]),
        "epsilon_cutoff": st.sampled_from([0.01]),
        "eta_cutoff": st.sampled_from([0.02]),
        "top_h": st.sampled_from([0.6]),
        "renormalize_logits": st.just(True),
        "repetition_penalty": st.sampled_from([1.4]),
        "no_repeat_ngram_size": st.just(1),
    },
)


@settings(max_examples=80, deadline=None)
@given(options=WARPERS, seed=st.integers(0, 1000), mine=st.booleans())
def test_what_is_drawn_from_is_what_transformers_draws_from(
    model: Any, options: dict[str, Any], seed: int, mine: bool
) -> None:
    random = np.random.default_rng(seed)
    config = transformers.GenerationConfig(do_sample=True, **({"top_k": 0} | options))
    own = transformers.LogitsProcessorList([processing.TopPLogitsWarper(0.8)] if mine else [])
    processors = model._get_logits_processor(
        config, input_ids_seq_length=6, logits_processor=own, device="cpu"
    )
    tokens = random.integers(0, 50, size=9)
    logits = random.normal(size=50, scale=2).astype(np.float32)
    ids = torch.from_numpy(tokens)[None]
    wanted = processors(ids, torch.from_numpy(logits.copy())[None])[0].softmax(-1).numpy()
    padding = ids[0, :2]
    params = sampling_params(processors, sampled=True, seed=0, row=0, padding=padding)
    shaped = shape_logits(logits, params, tokens[2:], prompt_tokens=4)
    found = distribution(shaped, params).probabilities()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_truncations_are_taken_over_where_their_order_is_ours() -> None:
    temperature, top_p = processing.TemperatureLogitsWarper(0.7), processing.TopPLogitsWarper(0.9)
    options: dict[str, Any] = {
        "sampled": True,
        "seed": 4,
        "row": 0,
        "padding": torch.empty(0, dtype=torch.long),
    }
    found = sampling_params([temperature, top_p], **options)
    assert (found.temperature, found.top_p, found.processors, found.seed) == (0.7, 0.9, (), 4)
    found = sampling_params([top_p, temperature], **options)
    assert (found.temperature, found.top_p, len(found.processors)) == (0.7, 1.0, 1)
    kept_one = processing.TopPLogitsWarper(0.9, min_tokens_to_keep=2)
    found = sampling_params([temperature, kept_one], **options)
    assert (found.temperature, found.top_p, len(found.processors)) == (1.0, 1.0, 1)


def sampled(model: Any, hook: Any, **more: Any) -> list[list[int]]:
    options = {"max_new_tokens": 20, "do_sample": True, "temperature": 0.8, "top_p": 0.95}
    return model.generate(
        **prompts(9, 21), pad_token_id=PAD, **(options | more), custom_generate=hook
    ).tolist()


def test_sampled_text_depends_on_the_seed_and_not_on_the_drafter(model: Any) -> None:
    for more in ({}, {"repetition_penalty": 1.2, "top_k": 30}):
        found = [
            sampled(model, speculate(seed=7, drafter=drafter, draft_tokens=draft_tokens), **more)
            for drafter, draft_tokens in (
                ("none", 0),
                ("auto", 4),
                ("suffix", 9),
                ("recycle", 3),
                ("ngram", 2),
            )
        ]
        assert all(one == found[0] for one in found)
    assert sampled(model, speculate(seed=8, **FAST)) != sampled(model, speculate(seed=7, **FAST))


def test_the_seed_is_pytorchs_unless_given(model: Any) -> None:
    torch.manual_seed(3)
    first, second = (sampled(model, speculate(**FAST)) for _ in range(2))
    torch.manual_seed(3)
    assert sampled(model, speculate(**FAST)) == first != second


def test_several_answers_to_a_prompt_differ(model: Any) -> None:
    found = model.generate(
        **prompts(9),
        max_new_tokens=12,
        do_sample=True,
        num_return_sequences=3,
        pad_token_id=PAD,
        custom_generate=speculate(seed=1, **FAST),
    )
    assert len(found) == 3
    assert len(set(map(tuple, found.tolist()))) == 3


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "generation mode beam_search"),
        ({"prompt_lookup_num_tokens": 3}, "generation mode assisted_generation"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"speculation_type": "dflash"}, "speculation_type 'dflash'"),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor remembers"),
        ({"encoder_repetition_penalty": 1.5}, "EncoderRepetitionPenaltyLogitsProcessor"),
        ({"past_key_values": transformers.DynamicCache()}, "past_key_values"),
        ({"inputs_embeds": torch.zeros(2, 9, 64)}, "inputs_embeds"),
        ({"position_ids": torch.zeros(2, 9, dtype=torch.long)}, "position_ids"),
        ({"attention_mask": torch.tensor([[1] * 9, [1] * 8 + [0]])}, "row 1 has padding after"),
        ({"attention_mask": torch.zeros(2, 9, dtype=torch.long)}, "the prompt is empty"),
        ({"streamer": transformers.TextStreamer(None)}, "one prompt at a time|batch size 1"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(
    model: Any, options: dict[str, Any], message: str
) -> None:
    given = prompts(9, 9) | {"max_new_tokens": 4, "pad_token_id": PAD} | options
    with pytest.raises(ValueError, match=message):
        model.generate(**given, custom_generate=speculate(**FAST))


def test_every_field_of_a_configuration_is_known() -> None:
    known = [*fields.HONOURED, *fields.REFUSED, *fields.WITHOUT_EFFECT]
    assert len(known) == len(set(known))
    named = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    assert set(known) == named


def test_an_option_of_a_later_transformers_is_refused(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(transformers.GenerationConfig):
        def __init__(self, **more: Any) -> None:
            super().__init__(**more)
            self.shuffle_tokens = more.get("shuffle_tokens")

    monkeypatch.setattr(fields, "GenerationConfig", Later)
    fields.check_fields(Later())
    with pytest.raises(ValueError, match="shuffle_tokens True: this specplug does not know"):
        fields.check_fields(Later(shuffle_tokens=True))


def test_an_assistant_model_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="no assistant model"):
        model.generate(
            **prompts(9),
            max_new_tokens=2,
            assistant_model=model,
            custom_generate=speculate(**FAST),
        )


def test_a_model_in_training_is_refused(model: Any) -> None:
    model.train()
    try:
        with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
            model.generate(**prompts(9), max_new_tokens=2, custom_generate=speculate(**FAST))
    finally:
        model.eval()


def test_rows_of_unlike_lengths_need_a_token_to_pad_with(model: Any) -> None:
    ends = [lambda ids, scores, **_: torch.tensor([ids.shape[1] > 12])]
    options = {"max_new_tokens": 4, "eos_token_id": None, "stopping_criteria": ends}
    with pytest.raises(ValueError, match="give pad_token_id"):
        model.generate(**prompts(9, 9), **options, custom_generate=speculate(**FAST))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drafter": "magic"}, "'magic' is none of none"),
        ({"drafter": "draft"}, "give bundle"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speculate(**options)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=300), "ALiBi"),
        (
            transformers.FalconConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                vocab_size=300,
                alibi=True,
            ),
            "cannot be driven",
        ),
        (
            transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=300),
            "recurrent",
        ),
    ],
    ids=["bloom", "falcon", "mamba"],
)
def test_models_that_cannot_be_driven_are_refused(config: Any, message: str) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(EngineError, match=message):
        model.generate(**prompts(9), max_new_tokens=2, custom_generate=speculate(**FAST))

"""``model.generate(…, custom_generate=speculate())`` against transformers' own decoding."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers.generation import logits_process as processing

from specplug import EngineError, History
from specplug.export.source import open_source
from specplug.integrations.transformers import kept, speculate
from specplug.integrations.transformers.choosing import sampling_params
from specplug.sampling import distribution, shape_logits
from specplug.weights import MODELS, default_folder
from tests_support.families import NAMED
from tests_support.tiny import write_checkpoint

FAMILIES = (
    "llama",
    "mistral windowed",
    "qwen2 windowed",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "falcon grouped",
)
PAD, EOS = 250, 256
FAST: dict[str, Any] = {"draft_tokens": 5}  # spares the measuring of costs


def tiny(folder: Path, family: str = "llama", **config: Any) -> Any:
    checkpoint = write_checkpoint(
        folder, model_type=family.split()[0], **(NAMED.get(family, {}) | config)
    )
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_checkpoint(tmp_path_factory.mktemp("tokenizer") / "tiny")
    return transformers.AutoTokenizer.from_pretrained(folder, pad_token="<|system|>")


def prompts(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Repetitive prompts, so that lookup finds something, padded on the left."""
    random = np.random.default_rng(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        phrase = random.integers(0, 40, size=7)
        ids[row, max(lengths) - length :] = torch.tensor(np.resize(phrase, length))
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def both(
    model: Any, inputs: dict[str, torch.Tensor], hook: Any = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers says, and what specplug does."""
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": PAD} | options
    expected = model.generate(**inputs, **copy.deepcopy(options))
    return expected, model.generate(**inputs, **options, custom_generate=hook or speculate(**FAST))


# --- greedy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", family)
    for lengths in ((21,), (5, 30, 17)):
        hook = speculate(**FAST)
        expected, found = both(model, prompts(*lengths), hook)
        assert found.tolist() == expected.tolist()
        assert [stats.prompt_tokens for stats in hook.stats] == [*lengths]


def test_drafts_are_accepted_and_their_number_may_be_automatic(model: Any) -> None:
    for draft_tokens in (5, "auto"):
        hook = speculate(draft_tokens=draft_tokens)
        expected, found = both(model, prompts(40), hook, max_new_tokens=120, eos_token_id=None)
        assert found.tolist() == expected.tolist()
        assert hook.stats[0].accepted > 0


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[7], [9, 3]]},
        {"sequence_bias": [[[11], 4.0], [[3, 5], -9.0]], "repetition_penalty": 1.5},
        {"min_new_tokens": 20, "eos_token_id": list(range(0, 200, 2))},
        {"min_length": 40, "eos_token_id": list(range(0, 200, 2))},
        {"suppress_tokens": list(range(60))},
        {"begin_suppress_tokens": list(range(100))},
        {"forced_eos_token_id": EOS},
        {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": EOS},
        {"prefix_allowed_tokens_fn": lambda row, ids: [row, row + 9, int(ids[-1]) // 2]},
        {"logits_processor": [processing.TopKLogitsWarper(3), lambda ids, scores: scores.roll(1)]},
        {"renormalize_logits": True, "remove_invalid_values": True},
        {"max_length": 33, "max_new_tokens": None},
        {"eos_token_id": list(range(0, 200, 7))},
        {"num_return_sequences": 1, "use_cache": False},
    ],
    ids=lambda options: "+".join(options),
)
def test_processors_and_lengths_are_those_of_transformers(model: Any, options: Any) -> None:
    for lengths in ((19,), (5, 19, 12)):
        expected, found = both(model, prompts(*lengths, seed=3), **options)
        assert found.tolist() == expected.tolist()


def test_one_prompt_alone_may_be_penalized_by_its_own_tokens(model: Any) -> None:
    options = {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2}
    expected, found = both(model, prompts(19), **options)
    assert found.tolist() == expected.tolist()


def test_no_attention_mask_and_a_dictionary_as_the_result(model: Any) -> None:
    ids = prompts(11)["input_ids"]
    expected = model.generate(ids, max_new_tokens=9, do_sample=False)
    found = model.generate(
        ids,
        max_new_tokens=9,
        do_sample=False,
        return_dict_in_generate=True,
        custom_generate=speculate(**FAST),
    )
    assert found.sequences.tolist() == expected.tolist()


# --- how it ends ----------------------------------------------------------------------------------


def test_stop_strings(model: Any, tokenizer: Any) -> None:
    options: dict[str, Any] = {
        **prompts(8, 19, seed=4),
        "max_new_tokens": 24,
        "do_sample": False,
        "pad_token_id": PAD,
        "suppress_tokens": list(range(94, 260)),  # a token is a character
    }
    whole = model.generate(**options)
    options["stop_strings"] = [tokenizer.decode(whole[1, 19 + 6 : 19 + 8])]
    expected = model.generate(**options, tokenizer=tokenizer)
    assert expected.tolist() != whole.tolist()
    found = model.generate(**options, custom_generate=speculate(tokenizer=tokenizer, **FAST))
    assert found.tolist() == expected.tolist()
    with pytest.raises(ValueError, match=r"give it to speculate\(tokenizer="):
        model.generate(**options, custom_generate=speculate(**FAST))


def test_criteria_of_the_users_own(model: Any) -> None:
    class Sum(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return ids.sum(dim=-1) % 3 == 0

    for lengths in ((9,), (4, 9, 30)):
        expected, found = both(model, prompts(*lengths), stopping_criteria=[Sum()])
        assert found.tolist() == expected.tolist()
        assert found.shape[1] < max(lengths) + 24


def test_a_time_limit_ends_every_row_after_a_token(model: Any) -> None:
    found = model.generate(
        **prompts(9, 5),
        max_new_tokens=24,
        pad_token_id=PAD,
        max_time=1e-9,
        custom_generate=speculate(**FAST),
    )
    assert found.shape == (2, 10)


def test_the_end_of_the_context_is_told(tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", max_position_embeddings=90)
    with pytest.warns(UserWarning, match="row 0 ended at the context's 75 tokens"):
        found = model.generate(
            **prompts(60), max_new_tokens=29, eos_token_id=None, custom_generate=speculate(**FAST)
        )
    assert found.shape == (1, 75)


def test_a_streamer_hears_what_transformers_would_tell_it(model: Any, tokenizer: Any) -> None:
    class Heard(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def put(self, value: torch.Tensor) -> None:
            self.heard.append(value.tolist())

        def end(self) -> None:
            self.heard.append("end")

    told, hears = Heard(), Heard()
    options = {**prompts(9), "max_new_tokens": 12, "do_sample": False, "pad_token_id": PAD}
    model.generate(**options, streamer=told)
    model.generate(**options, streamer=hears, custom_generate=speculate(**FAST))
    assert hears.heard == told.heard
    assert hears.heard[-1] == "end"

    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    options |= {"streamer": streamer, "custom_generate": speculate(**FAST)}
    running = Thread(target=model.generate, kwargs=options)
    running.start()
    text = "".join(streamer)
    running.join()
    answer = model.generate(**prompts(9), max_new_tokens=12, do_sample=False)[0, 9:]
    assert text == tokenizer.decode(answer)


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


# --- what is kept ---------------------------------------------------------------------------------


def test_a_models_engine_is_opened_once_and_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    opening = kept._open
    monkeypatch.setattr(kept, "_open", lambda model: opened.append(1) or opening(model))
    model = tiny(tmp_path / "model")
    history = History()
    for hook in (speculate(**FAST), speculate(**FAST), speculate(history=history, **FAST)):
        both(model, prompts(9), hook, max_new_tokens=3)
    assert opened == [1]
    assert len(history) > 0
    before = model.state_dict()["model.norm.weight"].clone()
    model.to(torch.bfloat16)
    model.generate(**prompts(9), max_new_tokens=3, custom_generate=speculate(**FAST))
    assert opened == [1, 1]
    assert model.state_dict()["model.norm.weight"].dtype != before.dtype
    gc.collect()
    gone, number = weakref.ref(model), len(kept._models)
    del model
    gc.collect()
    assert gone() is None
    assert len(kept._models) == number - 1


def test_a_failing_criterion_leaves_nothing_behind(model: Any) -> None:
    def fails(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        raise RuntimeError("as planned")

    with pytest.raises(RuntimeError, match="as planned"):
        both(model, prompts(9), stopping_criteria=[fails])
    expected, found = both(model, prompts(9))
    assert found.tolist() == expected.tolist()


# --- a bundle's engine in the model's place -------------------------------------------------------


def test_a_bundle_decodes_in_the_models_place(tiny_source: Path, tiny_bundle: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_source)
    for drafter in ("auto", "self"):
        hook = speculate(bundle=tiny_bundle, drafter=drafter, **FAST)
        expected, found = both(model, prompts(21, 8), hook)
        assert found.tolist() == expected.tolist()
    first, second = kept.kept(model).decoders.values()
    assert first.target.spec.name == second.target.spec.name == "onnxruntime"
    assert (first.drafter.name, second.drafter.name) == ("auto", "draft")


def test_a_bundle_of_another_vocabulary_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    model = tiny(tmp_path / "model", vocab_size=300)
    with pytest.raises(ValueError, match="has 260 tokens and the model's 300"):
        model.generate(
            **prompts(9), max_new_tokens=2, custom_generate=speculate(bundle=tiny_bundle, **FAST)
        )


# --- real weights ---------------------------------------------------------------------------------


@pytest.mark.weights
def test_smollm2_says_what_it_says_in_transformers() -> None:
    weights = default_folder() / MODELS["smollm2-135m"].filename
    if not weights.exists():
        pytest.skip(f"no {weights.name}: run `specplug pull smollm2-135m`, which needs the network")
    source = open_source(weights)
    model = source.reference()
    tokenizer = Tokenizer.from_str(source.tokenizer.json)
    text = (
        "The quick brown fox jumps over the lazy dog. Repeat: The quick brown fox",
        "List of rivers: the Rhine, the Danube, the",
    )
    for prompt in text:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        hook = speculate()
        expected, found = both(model, {"input_ids": ids}, hook, max_new_tokens=40, pad_token_id=0)
        assert found.tolist() == expected.tolist()
    assert hook.stats[0].new_tokens == 40

"""``model.generate(…, custom_generate=speculate())`` against transformers' own decoding."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from transformers.generation import logits_process as processing

from specplug import History
from specplug.export.source import open_source
from specplug.integrations.transformers import kept, speculate
from specplug.weights import MODELS, default_folder
from tests_support.generating import EOS, FAST, PAD, both, prompts, tiny
from tests_support.tiny import write_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_checkpoint(tmp_path_factory.mktemp("tokenizer") / "tiny")
    return transformers.AutoTokenizer.from_pretrained(folder, pad_token="<|system|>")


# --- greedy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = tiny(tmp_path / "model", family)
    for lengths in ((21,), (5, 30, 17)):
        hook = speculate(**FAST)
        expected, found = both(model, prompts(*lengths), hook)
        assert found.tolist() == expected.tolist()
        assert [stats.prompt_tokens for stats in hook.stats] == [*lengths]


def test_what_was_said_before_is_drafted_and_accepted(model: Any) -> None:
    hook = speculate(**FAST)
    for _ in range(2):
        expected, found = both(model, prompts(40), hook, max_new_tokens=60, eos_token_id=None)
        assert found.tolist() == expected.tolist()
    assert hook.stats[0].accepted > 30


def test_the_number_of_drafts_may_be_automatic(model: Any) -> None:
    hook = speculate()
    expected, found = both(model, prompts(40), hook, max_new_tokens=60, eos_token_id=None)
    assert found.tolist() == expected.tolist()
    assert hook.stats[0].draft_length > 5


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
        {"forced_bos_token_id": 7},
        {"watermarking_config": {"greenlist_ratio": 0.4, "bias": 3.0}},
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
    model = source.model(torch.float32, "cpu")
    tokenizer = Tokenizer.from_str(source.tokenizer.json)
    text = (
        "The quick brown fox jumps over the lazy dog. Repeat: The quick brown fox",
        "List of rivers: the Rhine, the Danube, the",
    )
    for prompt in text:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        hook = speculate(**FAST)
        expected, found = both(model, {"input_ids": ids}, hook, max_new_tokens=24, pad_token_id=0)
        assert found.tolist() == expected.tolist()
        assert hook.stats[0].new_tokens == 24

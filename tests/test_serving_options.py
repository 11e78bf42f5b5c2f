"""What a field does to the answer, asked for by OpenAI's own client: whole and streamed, in several
answers, with speculation and without."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from specplug import SamplingParams, SpeculativeDecoder
from specplug.batching import BatchDecoder
from tests_support.official import ASKED, LENGTH, PROMPT, SAMPLED, Answer, Asking
from tests_support.serving import MODEL, Running, serving


@pytest.fixture(scope="module")
def batch(tiny_bundles: dict[str, Path]) -> Iterator[BatchDecoder]:
    with BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=4, draft_tokens=4) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def alone(tiny_bundles: dict[str, Path]) -> Iterator[SpeculativeDecoder]:
    with SpeculativeDecoder.from_bundle(tiny_bundles["fp32"], drafter="none") as decoder:
        yield decoder


@pytest.fixture(scope="module")
def server(batch: BatchDecoder) -> Iterator[Running]:
    with serving(batch) as running:
        yield running
        running.wait_until_free()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="module", params=["chat", "completion"])
def asking(request: pytest.FixtureRequest, client: openai.OpenAI) -> Asking:
    return Asking(client, chat=request.param == "chat")


@pytest.fixture(scope="module")
def end(alone: SpeculativeDecoder) -> int:
    [token] = alone.tokenizer.stop_token_ids
    return token


# --- where an answer ends -------------------------------------------------------------------------


def test_tokens_that_end_an_answer(asking, end) -> None:
    fields = {"logit_bias": {str(end): -100}}
    before = asking.answers(**fields)
    token = before[0].ids[7]
    for answer, whole in zip(
        asking.answers(**fields, stop_token_ids=[token, token]), before, strict=True
    ):
        if token in whole.ids:
            cut = whole.ids.index(token) + 1
            assert (answer.ids, answer.finish_reason) == (whole.ids[:cut], "stop")
            assert len(answer.text) < len(whole.text)
        else:
            assert answer == whole


def test_the_models_own_end_is_ignored(asking, end) -> None:
    ending = {"logit_bias": {str(end): 100}, "temperature": 0}
    assert [answer.ids for answer in asking.answers(**ending)] == [(end,)] * 2
    for answer in asking.answers(**ending, ignore_eos=True):
        assert answer == Answer("", "length", (end,) * LENGTH)
    for answer in asking.answers(**ending, ignore_eos=True, stop_token_ids=[end]):
        assert answer.ids == (end,)


@pytest.mark.parametrize("least", [1, 5])
def test_an_answer_has_at_least_so_many_tokens(asking, end, least) -> None:
    for answer in asking.answers(logit_bias={str(end): 100}, min_tokens=least):
        assert answer.finish_reason == "stop"
        assert len(answer.ids) == least + 1
        assert answer.ids.index(end) == least
    letter = asking.answers(temperature=0)[0].text[0]
    assert asking.answers(temperature=0, stop=letter)[0].text == ""
    for answer in asking.answers(temperature=0, stop=letter, min_tokens=least):
        assert len(answer.ids) > least
        assert answer.text.startswith(letter)


def test_the_string_that_ends_an_answer_is_shown(asking, end) -> None:
    fields = {"temperature": 0, "logit_bias": {str(end): -100}}
    whole = asking.answers(**fields)[0].text
    stop = whole[6:8]
    cut = whole.index(stop)
    for shown in (False, True):
        for answer in asking.answers(**fields, stop=[stop], include_stop_str_in_output=shown):
            assert answer.finish_reason == "stop"
            assert answer.text == whole[: cut + (len(stop) if shown else 0)]


def test_special_tokens_are_shown(asking, alone) -> None:
    special = alone.tokenizer.backend.token_to_id("<|user|>")
    fields = {"allowed_token_ids": [special], "max_tokens": 3}
    assert [answer.text for answer in asking.answers(**fields)] == ["", ""]
    for answer in asking.answers(**fields, skip_special_tokens=False):
        assert answer.text == "<|user|>" * 3


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_new_tokens", "n_predict"])
def test_names_of_the_length(asking, end, name) -> None:
    fields = {"logit_bias": {str(end): -100}}
    wanted = asking.answers(**fields, max_tokens=3)
    assert [len(answer.ids) for answer in wanted] == [3, 3]
    assert asking.answers(**fields, **{"max_tokens": openai.omit, name: 3}) == wanted


def test_no_bound_of_the_length(client, alone, end) -> None:
    """llama.cpp's -1: until the context ends, in a completion too."""
    limit = alone.target.spec.context_limit
    fields = {"prompt": "x" * (limit - 30), "logit_bias": {str(end): -100}}
    made = client.completions.create(model=MODEL, **fields, extra_body={"n_predict": -1})
    assert made.usage.total_tokens == limit
    assert client.completions.create(model=MODEL, **fields).usage.completion_tokens == 16


# --- how tokens are chosen ------------------------------------------------------------------------


def test_words_that_do_not_occur(asking, end) -> None:
    fields = {"logit_bias": {str(end): -100}}
    before = asking.answers(**fields)
    letters = Counter("".join(answer.text for answer in before))
    words = [letter for letter, _ in letters.most_common() if letter.isascii()][:3]
    assert len(words) == 3
    for answer in asking.answers(**fields, bad_words=words):
        assert not set(answer.text) & set(words)
        assert answer.text


def test_only_some_tokens_occur(asking, alone) -> None:
    allowed = alone.encode("abc", chat=False)
    for answer in asking.answers(allowed_token_ids=allowed):
        assert answer.finish_reason == "length"
        assert set(answer.ids) <= set(allowed)
        assert set(answer.text) <= set("abc")
        assert len(set(answer.text)) > 1


def test_biases(asking, alone) -> None:
    [token] = alone.encode("z", chat=False)
    for answer in asking.answers(logit_bias={str(token): 100}):
        assert answer.text == "z" * LENGTH
    for answer in asking.answers(logit_bias={str(token): 100}, bad_words=["zz"]):
        assert token in answer.ids
        assert (token, token) not in zip(answer.ids, answer.ids[1:], strict=False)


@pytest.mark.parametrize("size", [1, 2])
def test_ngrams_occur_once(asking, alone, size) -> None:
    fields = {"allowed_token_ids": alone.encode("ghijklmpqsuvxyz" * 2, chat=False)}
    fields["max_tokens"] = 14 if size == 1 else LENGTH

    def repeated(ids: tuple[int, ...]) -> bool:
        grams = [ids[n : n + size] for n in range(len(ids) - size + 1)]
        return len(set(grams)) < len(grams)

    assert any(repeated(answer.ids) for answer in asking.answers(**fields))
    for answer in asking.answers(**fields, no_repeat_ngram_size=size):
        assert not repeated(answer.ids)


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"typical_p": 0.3}, {"typical_p": 0.3}),
        ({"repeat_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"repetition_penalty": 1.7, "repeat_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram": 1}),
        ({"top_k": -1}, {}),
        ({"typical_p": 1, "top_k": 0, "min_p": 0, "no_repeat_ngram_size": 0}, {}),
    ],
)
def test_sampling_is_the_decoders_own(asking, alone, fields, sampling) -> None:
    """Which transformers judges in tests/test_sampling.py."""
    params = SamplingParams(temperature=1.0, seed=7, **sampling)
    prompt = ASKED if asking.chat else PROMPT
    wanted = [
        alone.generate(prompt, chat=asking.chat, sampling=params, sample=n, max_tokens=LENGTH).text
        for n in range(2)
    ]
    assert [answer.text for answer in asking.answers(**fields)] == wanted
    assert (wanted == [answer.text for answer in asking.answers()]) == (not sampling)


def test_a_seed_of_minus_one_is_random(asking) -> None:
    assert len({asking.whole(seed=-1, n=1).choices[0].to_json() for _ in range(4)}) > 1
    assert asking.streamed(seed=-2) == asking.answers(seed=-2)


# --- what an answer is like -----------------------------------------------------------------------

RIVERS = {
    "type": "object",
    "properties": {"river": {"enum": ["Rhine", "Elbe"]}, "deep": {"type": "boolean"}},
    "required": ["river", "deep"],
    "additionalProperties": False,
}
GBNF = """root ::= greeting " " name
greeting ::= "hi" | "ho"
name ::= [A-C] [a-c]{2,3}
"""
LARK = 'start: ("hi" | "ho") " " /[A-C][a-c]{2,3}/'
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": RIVERS, "end": "</f>"}],
    "triggers": ["<f>"],
}


def is_river(text: str) -> bool:
    found = json.loads(text)
    return found["river"] in ("Rhine", "Elbe") and found["deep"] in (True, False)


def is_greeting(text: str) -> bool:
    return re.fullmatch("h[io] [A-C][a-c]{2,3}", text) is not None


def is_river_or_city(text: str) -> bool:
    return text in ("Rhine", "Bonn am Rhein")


FORMS: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
    *(
        (fields, is_river)
        for fields in (
            {"response_format": {"type": "json_object", "schema": RIVERS}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "r", "schema": RIVERS},
                }
            },
            {"json_schema": RIVERS},
            {"json_schema": json.dumps(RIVERS)},
            {"guided_json": RIVERS},
            {"guided_json": json.dumps(RIVERS)},
            {"structured_outputs": {"json": RIVERS}},
            {"structured_outputs": {"json": json.dumps(RIVERS), "json_object": False}},
        )
    ),
    *(({name: "h[io] [A-C][a-c]{2,3}"}, is_greeting) for name in ("regex", "guided_regex")),
    ({"structured_outputs": {"regex": "h[io] [A-C][a-c]{2,3}"}}, is_greeting),
    *(
        ({name: text}, is_greeting)
        for name in ("grammar", "ebnf", "guided_grammar")
        for text in (GBNF, LARK)
    ),
    ({"structured_outputs": {"grammar": GBNF}}, is_greeting),
    ({"guided_choice": ["Rhine", "Bonn am Rhein"]}, is_river_or_city),
    ({"structured_outputs": {"choice": ["Rhine", "Bonn am Rhein"]}}, is_river_or_city),
]


@pytest.mark.parametrize(
    ("fields", "fits"), FORMS, ids=lambda value: getattr(value, "__name__", str(value)[:60])
)
def test_answers_of_a_form(asking, fields, fits) -> None:
    made = asking.answers(**fields, max_tokens=200)
    assert [answer.finish_reason for answer in made] == ["stop", "stop"]
    assert all(fits(answer.text) for answer in made)


def test_every_form_is_the_same_under_all_its_names(asking) -> None:
    found = defaultdict(set)
    for fields, fits in FORMS:
        found[fits].add(str(asking.answers(**fields, max_tokens=200)))
    assert len(found[is_river]) == len(found[is_river_or_city]) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": TAG},
        {"structural_tag": json.dumps(TAG)},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
        {
            "response_format": {
                "type": "structural_tag",
                "format": {
                    "type": "triggered_tags",
                    "triggers": ["<f>"],
                    "tags": [
                        {
                            "begin": "<f>",
                            "content": {"type": "json_schema", "json_schema": RIVERS},
                            "end": "</f>",
                        }
                    ],
                },
            }
        },
    ],
    ids=["response_format", "structural_tag", "structured_outputs", "format"],
)
def test_structural_tags(asking, alone, fields) -> None:
    """Free text, in which the trigger, which is made likely here, begins JSON of the schema."""
    bias = {str(token): 20 for token in alone.encode("<f>", chat=False)}
    made = asking.answers(**fields, logit_bias=bias, max_tokens=300)
    for answer in made:
        parts = re.findall("<f>(.*?)</f>", answer.text, flags=re.DOTALL)
        assert parts
        assert all(is_river(part) for part in parts)


def test_any_json_object(asking) -> None:
    for fields in (
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
    ):
        for answer in asking.answers(**fields):
            assert answer.text.lstrip().startswith("{")


def test_flags_of_structured_outputs(asking) -> None:
    def texts(**flags: Any) -> list[str]:
        made = asking.answers(
            structured_outputs={"json": RIVERS, **flags}, temperature=2, max_tokens=200
        )
        return [answer.text for answer in made]

    spaced = texts(whitespace_pattern="[ ]{2}")
    for text in texts(disable_any_whitespace=True, whitespace_pattern=None):
        assert text == json.dumps(json.loads(text), separators=(",", ":"))
    for text in spaced:
        assert "  " in text
        assert is_river(text)
    [pattern] = {
        answer.text
        for answer in asking.answers(
            guided_json=RIVERS,
            guided_whitespace_pattern="[ ]{2}",
            temperature=2,
            max_tokens=200,
            n=1,
        )
    }
    assert pattern == spaced[0]
    loose = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    keys = set()
    for seed in range(4):
        for closed in (True, False):
            wanted = {
                "json": loose,
                "disable_additional_properties": closed,
                "disable_any_whitespace": True,
            }
            text = asking.streamed(structured_outputs=wanted, seed=seed, n=1)[0].text
            if closed:
                assert set(json.loads(text)) == {"a"}
            else:
                keys.add(text)
    assert not keys <= {'{"a":true}', '{"a":false}'}


def test_the_official_client_parses_models(client) -> None:
    class Name(BaseModel):
        river: Literal["Rhine", "Elbe"]

    class River(BaseModel):  # its schema has $defs and $ref
        name: Name
        others: list[Name] = Field(max_length=1)
        deep: bool | None

    made = client.chat.completions.parse(
        model=MODEL, messages=ASKED, response_format=River, max_tokens=200, **SAMPLED
    )
    found = made.choices[0].message.parsed
    assert isinstance(found, River)
    with client.chat.completions.stream(
        model=MODEL, messages=ASKED, response_format=River, max_tokens=200, **SAMPLED
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == found


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"regex": "a", "guided_regex": "a"}, "guided_regex"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a", "disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
        ),
        ({"regex": "("}, "regex"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"ebnf": "root ::= nothing"}, "ebnf"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"type": "x"}}, "guided_json"),
        ({"guided_json": "5"}, "guided_json"),
        ({"guided_json": {"type": "string", "pattern": "("}}, "guided_json"),
        ({"guided_json": {"type": "string", "format": "poem"}}, "guided_json"),
        ({"grammar": "answer ::= 'yes'"}, "grammar"),
        ({"grammar": 'answer ::= "yes"'}, "grammar"),
        ({"structural_tag": "5"}, "structural_tag"),
        ({"response_format": {"type": "structural_tag"}}, "response_format"),
        ({"response_format": {**TAG, "triggers": ["<g>"]}}, "response_format"),
        ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
        ({"min_tokens": LENGTH + 1}, "min_tokens"),
        ({"bad_words": [" "]}, "bad_words"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ],
)
def test_what_cannot_be_done(asking, fields, param) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        asking.whole(**fields)
    assert wrong.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"regex": "a{2}", "min_tokens": 5}, "min_tokens"),
        ({"allowed_token_ids": [64, 65], "no_repeat_ngram_size": 1}, None),
        ({"regex": "[0-9]{3}", "bad_words": list("0123456789")}, None),
    ],
)
def test_what_leaves_no_token_is_the_requests_own_fault(asking, server, fields, param) -> None:
    """Not the server's, whose log would tell why."""
    for ask in (asking.whole, asking.streamed):
        with pytest.raises(openai.APIError) as wrong:
            ask(**fields)
        assert wrong.value.type == "invalid_request_error"
        assert wrong.value.param == param
        if ask == asking.whole:
            assert wrong.value.status_code == 400
    assert asking.streamed() == asking.answers()  # others are answered


def test_what_other_libraries_send_beside_what_they_mean(asking) -> None:
    """Empty lists and objects, nulls, and defaults of other servers."""
    empty = {
        "stop": None,
        "stop_token_ids": [],
        "bad_words": [],
        "allowed_token_ids": None,
        "logit_bias": {},
        "user": "",
        "response_format": None,
        "structured_outputs": None,
        "stream_options": None,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "repetition_penalty": 1,
        "length_penalty": 1.0,
        "use_beam_search": False,
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "xtc_probability": 0,
        "min_tokens": 0,
        "ignore_eos": False,
        "skip_special_tokens": True,
        "truncate_prompt_tokens": None,
        "cache_prompt": True,
    }
    plain = asking.whole()
    made = asking.whole(**empty)
    assert made.choices == plain.choices


def test_an_empty_grammar_is_none(asking) -> None:
    assert asking.answers(grammar="") == asking.answers()

"""What the server answers, asked by OpenAI's own client: every field, streamed and not."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import openai
import pytest

from specplug import SamplingParams, SpeculativeDecoder
from specplug.batching import BatchDecoder
from tests_support.serving import MODEL, Running, serving

ASKED = [{"role": "user", "content": "one two three one two"}]
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 7}


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


def chat(client: openai.OpenAI, **fields):
    defaults = {"model": MODEL, "messages": ASKED, "max_tokens": 24, "temperature": 0}
    return client.chat.completions.create(**defaults | fields)


def streamed(client: openai.OpenAI, **fields) -> list[openai.types.chat.ChatCompletionChunk]:
    return list(chat(client, stream=True, **fields))


def texts_of(chunks) -> dict[int, str]:
    texts = defaultdict(str)
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return dict(texts)


def expected(alone: SpeculativeDecoder, *, prompt=ASKED, n=1, sampling=None, **options):
    made = SamplingParams(**sampling or {})
    return [
        alone.generate(prompt, sampling=made, sample=sample, **{"max_tokens": 24} | options)
        for sample in range(n)
    ]


# --- the text -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_text_is_the_decoders_own(client, alone, sampling) -> None:
    wanted = [result.text for result in expected(alone, sampling=sampling, n=2)]
    whole = chat(client, n=2, **sampling)
    assert [choice.message.content for choice in whole.choices] == wanted
    assert [choice.index for choice in whole.choices] == [0, 1]
    pieces = streamed(client, n=2, **sampling)
    assert texts_of(pieces) == dict(enumerate(wanted))
    assert {chunk.id for chunk in pieces} == {pieces[0].id}
    reasons = [c.finish_reason for chunk in pieces for c in chunk.choices if c.finish_reason]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_many_at_once_get_their_own_texts(client, alone) -> None:
    prompts = [[{"role": "user", "content": f"{word} " * 9}] for word in "abcdefghijkl"]
    wanted = [expected(alone, prompt=prompt, sampling=SAMPLED)[0].text for prompt in prompts]

    def ask(number: int) -> str:
        fields = {"messages": prompts[number], **SAMPLED}
        if number % 2:
            return texts_of(streamed(client, **fields))[0]
        return chat(client, **fields).choices[0].message.content

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, range(len(prompts)))) == wanted


def test_completions_continue_a_text(client, alone) -> None:
    wanted = alone.generate("one two", chat=False, max_tokens=16).text  # OpenAI's default
    made = client.completions.create(model=MODEL, prompt="one two", temperature=0)
    assert made.choices[0].text == wanted
    pieces = list(
        client.completions.create(model=MODEL, prompt="one two", temperature=0, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in pieces) == wanted
    assert pieces[-1].choices[0].finish_reason == made.choices[0].finish_reason


def test_a_request_may_have_several_prompts(client, alone) -> None:
    def ask(prompt, **fields):
        fields = {"max_tokens": 5, "seed": 3, **fields}
        made = client.completions.create(model=MODEL, prompt=prompt, **fields)
        return [choice.text for choice in made.choices]

    sampling = {"temperature": 1.0, "seed": 3}
    wanted = [
        result.text
        for prompt in ("one", "two")
        for result in expected(
            alone, prompt=alone.encode(prompt, chat=False), n=2, sampling=sampling, max_tokens=5
        )
    ]
    assert ask(["one", "two"], n=2) == wanted
    ids = [alone.encode(prompt, chat=False) for prompt in ("one", "two")]
    assert ask(ids, n=2) == wanted
    assert ask(ids[0]) == wanted[:1]


def test_seeds(client) -> None:
    def ask(seed):
        return chat(client, temperature=1, seed=seed).choices[0].message.content

    assert ask(5) == ask(5) != ask(6)
    assert ask(-5) == ask(-5) != ask(5)
    assert len({ask(None) for _ in range(3)}) > 1


def test_messages_of_parts_and_of_developers(client, alone) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "go on"},
    ]
    plain = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
        *messages[2:],
    ]
    wanted = expected(alone, prompt=plain)[0].text
    assert chat(client, messages=messages).choices[0].message.content == wanted


# --- how tokens are chosen ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.5, "top_p": 0.5},
        {"temperature": 1, "presence_penalty": 1.5, "frequency_penalty": -1},
        {"temperature": 1, "logit_bias": {"65": 5, "66": -100}},
        {"extra_body": {"top_k": 3, "temperature": 1}},
        {"extra_body": {"min_p": 0.2, "temperature": 1}},
        {"extra_body": {"repetition_penalty": 1.7}},
        {"extra_body": {"top_k": -1, "temperature": 1}},
    ],
)
def test_sampling_is_as_asked_for(client, alone, fields) -> None:
    sampling = {"seed": 3, **fields, **fields.get("extra_body", {})}
    sampling.pop("extra_body", None)
    sampling["logit_bias"] = {int(k): v for k, v in sampling.get("logit_bias", {}).items()}
    sampling["top_k"] = max(sampling.get("top_k", 0), 0)
    [wanted] = expected(alone, sampling=sampling)
    assert chat(client, seed=3, **fields).choices[0].message.content == wanted.text
    [other] = expected(alone, sampling={"seed": 3, "temperature": sampling.get("temperature", 0)})
    if sampling["top_k"] or len(sampling) > 4:  # -1 changes nothing
        assert wanted.text != other.text


def test_the_temperature_is_one_unless_given(client, alone) -> None:
    [wanted] = expected(alone, sampling={"temperature": 1.0, "seed": 2})
    made = client.chat.completions.create(model=MODEL, messages=ASKED, seed=2, max_tokens=24)
    assert made.choices[0].message.content == wanted.text


def test_stop_strings(client, alone) -> None:
    [whole] = expected(alone)
    stop = whole.text[6:8]
    [wanted] = expected(alone, stop=[stop])
    assert wanted.finish_reason == "stop"
    for given in (stop, [stop, "\x00never"]):
        choice = chat(client, stop=given).choices[0]
        assert (choice.message.content, choice.finish_reason) == (wanted.text, "stop")
    pieces = streamed(client, stop=stop)
    assert texts_of(pieces)[0] == wanted.text


def test_lengths(client, alone) -> None:
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict"):
        made = chat(client, max_tokens=None, extra_body={name: 3})
        assert made.usage.completion_tokens == 3
        assert made.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="give one of them"):
        chat(client, max_tokens=5, max_completion_tokens=2)


def test_without_a_length_an_answer_may_fill_the_context(client, alone) -> None:
    limit = alone.target.spec.context_limit
    messages = [{"role": "user", "content": "x" * (limit - 30)}]
    made = chat(client, messages=messages, max_tokens=None)
    assert made.usage.total_tokens <= limit
    assert made.choices[0].finish_reason in ("stop", "length")


def test_answers_of_a_schema(client) -> None:
    schema = {
        "type": "object",
        "properties": {"river": {"enum": ["Rhine", "Elbe"]}, "deep": {"type": "boolean"}},
        "required": ["river", "deep"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "river", "schema": schema}}
    for fields in ({}, {"temperature": 1, "seed": 1}):
        made = chat(client, response_format=wanted, max_tokens=200, **fields)
        assert made.choices[0].finish_reason == "stop"
        found = json.loads(made.choices[0].message.content)
        assert found["river"] in ("Rhine", "Elbe")
        assert isinstance(found["deep"], bool)
    assert texts_of(streamed(client, response_format=wanted, max_tokens=200))[0]
    made = chat(client, response_format={"type": "json_object"}, max_tokens=20)
    assert made.choices[0].message.content.lstrip().startswith("{")
    plain = chat(client, response_format={"type": "text"})
    assert plain.choices[0].message.content == chat(client).choices[0].message.content


# --- what comes beside the text -----------------------------------------------------------------


def test_logprobs_of_messages(client, alone) -> None:
    [wanted] = expected(alone, logprobs=3)
    choice = chat(client, logprobs=True, top_logprobs=3).choices[0]
    content = choice.logprobs.content
    assert len(content) == len(wanted.tokens)
    for found, token in zip(content, wanted.tokens, strict=True):
        assert found.logprob == pytest.approx(token.logprobs.chosen)
        if found.bytes is None:  # a special token
            assert found.token == alone.tokenizer.name(token.id)
            assert not token.utf8
        else:  # of a part of a character, too
            assert bytes(found.bytes) == token.utf8
            assert found.token == token.utf8.decode(errors="backslashreplace")
        values = [other.logprob for other in found.top_logprobs]
        assert values == pytest.approx([value for _, value in token.logprobs.top])
    pieces = streamed(client, logprobs=True, top_logprobs=3)
    assert [
        one for chunk in pieces for c in chunk.choices if c.logprobs for one in c.logprobs.content
    ] == content
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client).choices[0].logprobs is None


def test_logprobs_of_completions_and_echo(client, alone) -> None:
    options = {"logprobs": 2, "echo": True, "max_tokens": 6}
    wanted = alone.generate("one two", chat=False, **options)
    fields = {"model": MODEL, "prompt": "one two", "temperature": 0, **options}
    choice = client.completions.create(**fields).choices[0]
    assert choice.text == wanted.text
    assert choice.text.startswith("one two")
    found = choice.logprobs
    for name, token in zip(found.tokens, wanted.tokens, strict=True):
        text = alone.tokenizer.name(token.id)
        part = "bytes:" + token.utf8.decode(errors="backslashreplace")
        assert name == (part if "\ufffd" in text else text)
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    assert found.token_logprobs[1:] == pytest.approx(
        [token.logprobs.chosen for token in wanted.tokens[1:]]
    )
    assert all(2 <= len(top) <= 3 for top in found.top_logprobs[1:])  # the chosen one's, too
    assert found.text_offset == [token.offset for token in wanted.tokens]
    pieces = [chunk.choices[0] for chunk in client.completions.create(**fields, stream=True)]
    assert "".join(piece.text for piece in pieces) == choice.text
    again = {
        name: [one for piece in pieces for one in getattr(piece.logprobs, name)]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    assert (again["tokens"], again["text_offset"]) == (found.tokens, found.text_offset)
    # It drafts trees of the first answer, whose scores may differ by `tree_difference`.
    near = partial(pytest.approx, abs=1e-4)
    assert again["token_logprobs"] == near(found.token_logprobs)
    for one, other in zip(again["top_logprobs"], found.top_logprobs, strict=True):
        assert one == (other and near(other))


def test_unlikely_logprobs_are_numbers(client) -> None:
    made = chat(client, logprobs=True, logit_bias={"65": 100}, max_tokens=4)
    assert all(math.isfinite(one.logprob) for one in made.choices[0].logprobs.content)
    assert made.choices[0].message.content.startswith(made.choices[0].logprobs.content[0].token)


def test_usage_and_metrics(client, alone) -> None:
    made = chat(client, n=2, **SAMPLED)
    tokens = sum(len(result.tokens) for result in expected(alone, n=2, sampling=SAMPLED))
    assert made.usage.prompt_tokens == len(alone.encode(ASKED))
    assert made.usage.completion_tokens == tokens
    assert made.usage.total_tokens == made.usage.prompt_tokens + tokens
    found = made.metrics["speculative_decoding"]
    assert found["num_spec_tokens"] == 4
    assert found["num_draft_tokens"] == sum(found["per_step_drafted"]) > 0
    assert found["num_spec_steps"] == len(found["per_step_drafted"])
    assert found["num_accepted_draft_tokens"] == tokens - 2 - found["num_spec_steps"]


def test_usage_at_the_end_of_a_stream(client) -> None:
    *pieces, last = streamed(client, stream_options={"include_usage": True})
    whole = chat(client)
    assert all(piece.usage is None and "usage" in piece.model_fields_set for piece in pieces)
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.metrics["speculative_decoding"]["num_spec_steps"] > 0
    assert all("usage" not in piece.model_fields_set for piece in streamed(client))


def test_who_made_each_token(client, alone) -> None:
    pieces = streamed(client, stream_options={"include_token_origins": True})
    tokens = [t for chunk in pieces for c in chunk.choices for t in getattr(c, "tokens", [])]
    [wanted] = expected(alone)
    assert [token["id"] for token in tokens] == list(wanted.token_ids)
    assert "".join(token["text"] for token in tokens) == wanted.text
    assert {token["origin"] for token in tokens} <= {"draft", "corrected", "bonus", "plain"}
    assert {"draft", "bonus"} & {token["origin"] for token in tokens}
    assert not hasattr(streamed(client)[1].choices[0], "tokens")


def test_speculation_can_be_refused(client) -> None:
    made = chat(client, extra_body={"speculation": False})
    assert made.metrics["speculative_decoding"]["num_draft_tokens"] == 0
    assert made.choices[0].message.content == chat(client).choices[0].message.content


@pytest.mark.parametrize("speculation", [True, False])
def test_predictions_are_counted(client, speculation) -> None:
    text = '"the quick brown fox"'  # a token a character
    schema = {"name": "fox", "schema": {"const": json.loads(text)}}

    def details(content, **fields):
        made = chat(
            client,
            prediction={"type": "content", "content": content},
            response_format={"type": "json_schema", "json_schema": schema},
            extra_body={"speculation": speculation},
            **fields,
        )
        assert text.startswith(made.choices[0].message.content)
        found = made.usage.completion_tokens_details
        return found.accepted_prediction_tokens, found.rejected_prediction_tokens

    assert details(text) == (len(text), 0)
    assert details([{"type": "text", "text": part} for part in (text[:5], text[5:])]) == (21, 0)
    assert details(text, max_tokens=4) == (4, len(text) - 4)
    assert details(text, n=2, temperature=1) == (2 * len(text), 0)
    assert details("\x01\x02\x03") == (0, 3)
    accepted, rejected = details(text.replace("quick", "slow"))
    assert accepted + rejected == len(text) - 1
    assert len(text) - 9 <= accepted <= len(text) - 5  # a token or two to find the place again
    none = chat(client).usage.completion_tokens_details
    assert (none.accepted_prediction_tokens, none.rejected_prediction_tokens) == (0, 0)


def test_prompts_that_begin_alike_are_read_once(client) -> None:
    messages = [{"role": "user", "content": "the same beginning " * 20}]
    first, second = (chat(client, messages=messages) for _ in range(2))
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens >= 64
    assert first.choices[0].message.content == second.choices[0].message.content


def test_harmless_fields_change_nothing(client) -> None:
    fields = {"user": "someone", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    off = {"parallel_tool_calls": True, "tools": [], "tool_choice": "auto", "modalities": ["text"]}
    made = chat(client, **fields, extra_body=off | {"request_id": "7", "priority": 3})
    assert made.choices[0].message.content == chat(client).choices[0].message.content


def test_models(client, alone) -> None:
    [found] = client.models.list().data
    assert found.id == MODEL
    assert found.max_model_len == alone.target.spec.context_limit
    assert client.models.retrieve(MODEL) == found
    assert chat(client, model=MODEL).model == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_the_model_need_not_be_named(server) -> None:
    status, _, body = server.send("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})
    assert status == 200
    assert json.loads(body)["model"] == MODEL

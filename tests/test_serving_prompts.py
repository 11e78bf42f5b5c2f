"""How a request's prompt is put together, and what is told of it, asked for by OpenAI's client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import transformers

from specplug.batching import BatchDecoder
from specplug.bundle import Bundle
from specplug.engines.fake import FakeEngine
from specplug.prompts import render_chat
from specplug.serving.errors import ApiError
from specplug.serving.options import prompt_options
from specplug.serving.requests import ChatRequest
from specplug.serving.settings import ServerSettings
from specplug.templates import compile_template
from specplug.text import Tokenizer
from tests_support.languages import language
from tests_support.serving import MODEL, Running, serving

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.name %}({{ message.name }}){% endif %}"
    "{% if message.reasoning_content %}[{{ message.reasoning_content }}]{% endif %}"
    "{{ message.content }}<|end|>{% endfor %}"
    "{% if reasoning_effort is defined %}!{{ reasoning_effort }}{% endif %}"
    "{% if language %}?{{ language }}{% endif %}"
    "{% if documents %}#{{ documents | length }}{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<>{% endif %}{% endif %}"
)
NO_THOUGHTS = ({"enable_thinking": False}, {"reasoning_effort": "none"}, {"thinking": False})
THOUGHTS = ({"enable_thinking": True}, {"reasoning_effort": "high"})
ASKED = [{"role": "user", "content": "one two"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "three"}]


def with_template(bundle: Path, template: str) -> Tokenizer:
    opened = Bundle.open(bundle)
    found = opened.tokenizer()
    return Tokenizer(
        bundle / "tokenizer.json",
        stop_token_ids=found.stop_token_ids,
        chat_template=template,
        special_tokens=found.special_tokens,
    )


@pytest.fixture(scope="module")
def reference(tiny_source: Path) -> Any:
    """transformers' tokenizer of the same template."""
    made = transformers.AutoTokenizer.from_pretrained(tiny_source)
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def server(tiny_bundles: dict[str, Path]) -> Iterator[Running]:
    with BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=4, draft_tokens=4) as decoder:
        decoder.tokenizer = with_template(tiny_bundles["fp32"], TEMPLATE)
        with serving(decoder, log_prompts=True) as running:
            yield running
            running.wait_until_free()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def chat(client: openai.OpenAI, messages: Any = ASKED, **fields: Any) -> Any:
    known = {"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0}
    streams = {name: fields.pop(name) for name in ("stream",) if name in fields}
    return client.chat.completions.create(**known, **streams, extra_body=fields)


def complete(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    known = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0}
    return client.completions.create(**known, extra_body=fields)


# --- chat templates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "fields", "theirs"),
    [
        (ASKED, {}, {}),
        (ASKED, {"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        (ASKED, {"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
        (ASKED, {"enable_thinking": False}, {"enable_thinking": False}),
        (
            ASKED,
            {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": False}},
            {"enable_thinking": False},
        ),
        (
            ASKED,
            {"reasoning_effort": "high"},
            {"reasoning_effort": "high", "enable_thinking": True},
        ),
        (
            ASKED,
            {"reasoning_effort": "none"},
            {"reasoning_effort": "none", "enable_thinking": False},
        ),
        (
            ASKED,
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            {"reasoning_effort": "low", "enable_thinking": False},
        ),
        (ASKED, {"chat_template_kwargs": {"language": "da"}}, {"language": "da"}),
        (ASKED, {"chat_template_kwargs": {"documents": [{"text": "x"}]}}, {"documents": [{}]}),
        (ASKED, {"add_generation_prompt": False}, {"add_generation_prompt": False}),
        (BEGUN, {}, {}),
        (BEGUN, {"continue_final_message": True}, {"continue_final_message": True}),
        (
            BEGUN,
            {"continue_final_message": True, "add_generation_prompt": False},
            {"continue_final_message": True},
        ),
        ([{**ASKED[0], "name": "Ann"}], {}, {}),
        ([*ASKED, {**BEGUN[1], "content": ""}, *ASKED], {}, {}),
        ([*ASKED, {**BEGUN[1], "reasoning_content": "hm"}, *ASKED], {}, {}),
    ],
)
def test_prompts_are_those_of_transformers(
    client, reference, messages, fields, theirs: Mapping[str, Any]
) -> None:
    theirs = {"add_generation_prompt": not theirs.get("continue_final_message"), **theirs}
    text = reference.apply_chat_template(messages, tokenize=False, **theirs)
    wanted = complete(client, reference.encode(text, add_special_tokens=False))
    made = chat(client, messages, **fields)
    assert made.usage.prompt_tokens == wanted.usage.prompt_tokens
    assert made.choices[0].message.content == wanted.choices[0].text
    pieces = chat(client, messages, stream=True, **fields)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert streamed == wanted.choices[0].text
    if fields and fields != {"chat_template_kwargs": {"enable_thinking": True}}:
        before = chat(client, messages)
        assert before.usage.prompt_tokens != made.usage.prompt_tokens


def test_a_thought_has_two_names(client) -> None:
    made = {
        name: chat(client, [*ASKED, {**BEGUN[1], name: "hm"}, *ASKED]).usage.prompt_tokens
        for name in ("reasoning", "reasoning_content")
    }
    assert made["reasoning"] == made["reasoning_content"] > chat(
        client, [*BEGUN, *ASKED]
    ).usage.prompt_tokens  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"enable_thinkin": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs"),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
            "enable_thinking",
        ),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}},
            "reasoning_effort",
        ),
    ],
)
def test_variables_that_are_refused(client, fields, param) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        chat(client, **fields)
    assert wrong.value.param == param


def test_a_template_without_thoughts(tiny_bundles) -> None:
    """What it cannot do is refused, and what it does anyway is not."""
    with (
        BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=1) as decoder,
        serving(decoder) as server,
        server.client() as client,
    ):
        before = chat(client)
        for fields in (*NO_THOUGHTS[:2], *({"chat_template_kwargs": one} for one in NO_THOUGHTS)):
            made = chat(client, **fields)
            assert made.choices == before.choices
        for fields in (*THOUGHTS, *({"chat_template_kwargs": one} for one in THOUGHTS)):
            with pytest.raises(openai.BadRequestError) as wrong:
                chat(client, **fields)
            assert wrong.value.param == next(iter(fields))
        server.wait_until_free()


@pytest.mark.parametrize("known", ["thinking", "reasoning_effort"])
@pytest.mark.parametrize("asked", NO_THOUGHTS)
def test_no_thoughts_of_a_template_that_has_another_name_for_them(known, asked) -> None:
    """It might think, so what it does not read is refused, in the field and in the variables."""
    template = f"{{{{ messages[0].content }}}}{{{{ {known} }}}}"
    compiled = compile_template(template)
    spec = FakeEngine(language(0, vocab_size=9), vocab_size=9).spec

    def text(**fields: Any) -> str:
        request = ChatRequest.model_validate({"messages": ASKED, **fields})
        made = prompt_options(request, compiled.variables, spec, ServerSettings())
        variables = made["chat_template_kwargs"]
        return render_chat(compiled, ASKED, {}, chat_template_kwargs=variables)

    ways = [{"chat_template_kwargs": asked}] + [asked] * ("thinking" not in asked)
    for fields in ways:
        if known in asked:
            assert text(**fields) == f"{ASKED[0]['content']}{asked[known]}"
        else:
            with pytest.raises((ApiError, ValueError), match=known):
                text(**fields)


def test_a_chats_answer_begins_with_the_message_that_it_continues(client) -> None:
    """As vLLM's echo."""
    for fields in ({"continue_final_message": True}, {}):
        alone = chat(client, BEGUN, **fields).choices[0].message.content
        made = chat(client, BEGUN, **fields, echo=True, n=2)
        assert [one.message.content for one in made.choices] == ["three" + alone] * 2
        pieces = chat(client, BEGUN, **fields, echo=True, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
        assert text == "three" + alone
    assert chat(client, echo=True).choices == chat(client).choices


# --- its length -----------------------------------------------------------------------------------


def test_the_prompts_last_tokens_are_kept(client) -> None:
    wanted = complete(client, "one two")
    made = complete(client, "three one two", truncate_prompt_tokens=7)
    assert made.usage == wanted.usage
    assert made.choices == wanted.choices
    assert complete(client, "one two", truncate_prompt_tokens=100).choices == wanted.choices
    both = complete(client, ["three one two", "four"], truncate_prompt_tokens=7)
    assert both.choices[0].text == wanted.choices[0].text
    assert both.usage.prompt_tokens == 7 + 4
    assert chat(client, truncate_prompt_tokens=5).usage.prompt_tokens == 5


@pytest.mark.parametrize("most", [None, 300])
def test_as_much_of_a_prompt_as_fits(client, server, most, monkeypatch) -> None:
    if most is not None:
        monkeypatch.setattr(
            server.service, "settings", server.service.settings.__class__(
                model_name=MODEL, max_prompt_tokens=most
            )
        )  # fmt: skip
    limit = server.service.decoder.target.spec.context_limit
    long = "x" * (2 * limit)
    with pytest.raises(openai.BadRequestError):
        complete(client, long)
    made = complete(client, long, truncate_prompt_tokens=-1)
    assert made.usage.prompt_tokens == min(limit - 12, most or limit)
    messages = [{"role": "user", "content": long}]
    made = chat(client, messages, truncate_prompt_tokens=-1)
    assert made.usage.prompt_tokens == min(limit - 12, most or limit)


# --- what is told of it ---------------------------------------------------------------------------


def test_the_prompts_log_probabilities(client, server, model, reference) -> None:
    """In vLLM's form; the numbers are transformers'."""
    tokens = reference.encode("one two", add_special_tokens=False)
    with torch.no_grad():
        values = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), dim=-1)
    made = complete(client, "one two", prompt_logprobs=2, n=2)
    for choice in made.choices:
        first, *rest = choice.prompt_logprobs
        assert first is None
        for entry, token, row in zip(rest, tokens[1:], values, strict=False):
            ranks = {int(other): rank for rank, other in enumerate(row.argsort(descending=True), 1)}
            likeliest = [other for other, rank in ranks.items() if rank <= 2]
            assert entry.keys() == {str(other) for other in (token, *likeliest)}
            for other, found in entry.items():
                assert found["logprob"] == pytest.approx(float(row[int(other)]), abs=1e-3)
                assert found["rank"] == ranks[int(other)]
                assert found["decoded_token"] == server.service.tokenizer.name(int(other))
    assert len(made.choices[0].prompt_logprobs) == len(tokens)
    assert made.choices[0].text == complete(client, "one two").choices[0].text
    assert not hasattr(complete(client, "one two").choices[0], "prompt_logprobs")
    none = complete(client, "one two", prompt_logprobs=0).choices[0].prompt_logprobs
    assert [*map(len, none[1:])] == [1] * (len(tokens) - 1)
    asked = chat(client, prompt_logprobs=1)
    assert len(asked.prompt_logprobs) == asked.usage.prompt_tokens
    assert asked.choices == chat(client).choices


def test_tokens_are_named_by_their_ids(client, reference) -> None:
    made = complete(client, "one", logprobs=2, return_tokens_as_token_ids=True)
    plain = complete(client, "one", logprobs=2).choices[0].logprobs
    found = made.choices[0].logprobs
    assert all(name.startswith("token_id:") for name in found.tokens)
    ids = [int(name.removeprefix("token_id:")) for name in found.tokens]
    assert reference.decode(ids, skip_special_tokens=True) == made.choices[0].text
    assert found.token_logprobs == plain.token_logprobs
    assert all(name.startswith("token_id:") for top in found.top_logprobs for name in top)
    [choice] = chat(client, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True).choices
    for one in choice.logprobs.content:
        assert one.token.startswith("token_id:")
        assert all(other.token.startswith("token_id:") for other in one.top_logprobs)

"""Prompts: what transformers' ``apply_chat_template`` renders, with every variable and option."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import BatchDecoder, SpeculativeDecoder, Tokenizer
from specplug.engines.fake import FakeEngine
from tests_support.languages import language
from tests_support.tiny import byte_tokenizer

BEGIN = "<|begin_of_text|>"

# Written as the makers' own are, shortened.
TEMPLATES = {
    "chatml": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
        "{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
        "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if date_string is defined %}{{ date_string }}{% endif %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = "
        "messages[0]['content'] + '\\n\\n' %}{% set rest = messages[1:] %}{% else %}"
        "{% set first = '' %}{% set rest = messages %}{% endif %}{% for message in rest %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}"
        "{% if message['content'] is string %}{{ message['content'] | trim }}"
        "{% else %}{% for item in message['content'] %}{{ item['text'] | trim }}{% endfor %}"
        "{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    "qwen3": (
        "{%- for message in messages %}{%- set content = message.content %}"
        "{%- if message.role == 'assistant' %}{%- set reasoning_content = '' %}"
        "{%- if message.reasoning_content is string %}"
        "{%- set reasoning_content = message.reasoning_content %}"
        "{%- elif '</think>' in content %}{%- set reasoning_content = "
        "content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{%- if loop.last and reasoning_content %}{{- '<|im_start|>' + message.role + "
        "'\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + "
        "content.lstrip('\\n') }}{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}"
        "{%- endif %}{{- '<|im_end|>\\n' }}{%- else %}"
        "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
    ),
    "gpt-oss": (
        "{%- macro system(identity) %}{{- identity }}{{- '\\nReasoning: ' + reasoning_effort }}"
        "{%- endmacro %}{%- if reasoning_effort is not defined %}"
        "{%- set reasoning_effort = 'medium' %}{%- endif %}"
        "{{- '<|start|>system<|message|>' }}"
        "{{- system(model_identity | default('You are a model.')) }}{{- '<|end|>' }}"
        "{%- for message in messages %}{{- '<|start|>' + message.role + '<|message|>' + "
        "message.content + '<|end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
    ),
}
VARIABLES: dict[str, dict[str, list[Any]]] = {
    "chatml": {},
    "llama3": {"date_string": ["26 Jul 2024"], "bos_token": ["<s>"]},
    "gemma": {},
    "qwen3": {"enable_thinking": [True, False]},
    "gpt-oss": {"reasoning_effort": ["low", "high"], "model_identity": ["You are é."]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("prompts")
    byte_tokenizer((BEGIN, "<|im_start|>", "<|im_end|>")).save(str(made / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token=BEGIN
    )


def ours(folder: Path, template: str | None, **more: Any) -> Tokenizer:
    return Tokenizer(
        folder / "tokenizer.json",
        chat_template=template,
        special_tokens={"bos_token": BEGIN},
        stop_token_ids=[256],
        **more,
    )


CONTENT = st.text(st.sampled_from("a é\n.<>"), max_size=8) | st.sampled_from(
    ["<think>\nwell\n</think>\n\nYes", "  so  ", "I\n\n", "</think>"]
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    turns = ["user", "assistant"] * draw(st.integers(1, 2))
    roles = (["system"] * draw(st.booleans())) + turns[: draw(st.integers(1, len(turns)))]
    messages: list[dict[str, Any]] = [{"role": role, "content": draw(CONTENT)} for role in roles]
    for message in messages:
        if message["role"] == "assistant":
            if draw(st.booleans()):
                message["name"] = None
            if draw(st.booleans()):
                message["reasoning_content"] = draw(CONTENT)
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=60)
@given(messages=conversations(), data=st.data())
def test_text_and_tokens_are_transformers(
    folder: Path, theirs: Any, name: str, messages: list[dict[str, Any]], data: st.DataObject
) -> None:
    tokenizer = ours(folder, TEMPLATES[name])
    variables = {
        variable: data.draw(st.sampled_from(values))
        for variable, values in VARIABLES[name].items()
        if data.draw(st.booleans())
    }
    continued = data.draw(st.booleans())
    header = data.draw(st.sampled_from([False, None] if continued else [True, False, None]))
    header_there = not continued if header is None else header
    try:
        expected = theirs.apply_chat_template(
            messages,
            chat_template=TEMPLATES[name],
            tokenize=False,
            add_generation_prompt=header_there,
            continue_final_message=continued,
            **variables,
        )
    except ValueError:  # the template drops the message that is to be continued
        expected = None
    options: dict[str, Any] = {
        "chat_template_kwargs": variables,
        "continue_final_message": continued,
        "add_generation_prompt": header,
    }
    if expected is None:
        with pytest.raises(ValueError, match="continue_final_message"):
            tokenizer.render(messages, **options)
        return
    assert tokenizer.render(messages, **options) == expected
    decoder = SpeculativeDecoder(
        FakeEngine(language(0, vocab_size=300), vocab_size=300), tokenizer=tokenizer
    )
    assert decoder.encode(messages, **options) == theirs.encode(expected, add_special_tokens=False)


def test_content_in_parts_is_continued(folder: Path, theirs: Any) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"text": "b "}]},
    ]
    expected = theirs.apply_chat_template(
        messages,
        chat_template=TEMPLATES["gemma"],
        tokenize=False,
        continue_final_message=True,
    )
    before = [dict(message) for message in messages]
    tokenizer = ours(folder, TEMPLATES["gemma"])
    assert tokenizer.render(messages, continue_final_message=True) == expected
    assert messages == before


TEXTS = st.lists(CONTENT, min_size=1, max_size=3)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=30)
@given(texts=TEXTS, header=st.booleans())
def test_parts_of_text(
    folder: Path, theirs: Any, name: str, texts: list[str], header: bool
) -> None:
    """A template that takes parts gets them; for another they are one text, as vLLM has it."""
    parts = [{"type": "text", "text": text} for text in texts]
    content = parts if name == "gemma" else "\n".join(texts)
    expected = theirs.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=header,
    )
    for given_as in (parts, tuple(parts)):
        messages = [{"role": "user", "content": given_as}]
        made = ours(folder, TEMPLATES[name]).render(messages, add_generation_prompt=header)
        assert made == expected


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({}, r"messages[0]: role None"),
        ({"content": "x"}, "messages[0]: role None"),
        ({"role": 5, "content": "x"}, "messages[0]: role 5"),
        ({"role": "", "content": "x"}, "messages[0]: role ''"),
        ({"role": "user"}, "messages[0]: it has no content"),
        ({"role": "user", "content": None}, "messages[0]: it has no content"),
        ({"role": "user", "content": 5}, "messages[0]: content 5"),
        ({"role": "user", "content": {"text": "x"}}, "messages[0]: content {'text': 'x'}"),
        ({"role": "user", "content": ["x"]}, "the chat template takes text alone, not 'x'"),
        ({"role": "user", "content": [{"type": "image"}]}, "text alone, not {'type': 'image'}"),
    ],
)
@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_what_is_no_message_is_refused(
    folder: Path, name: str, message: dict[str, Any], told: str
) -> None:
    decoder = SpeculativeDecoder(
        FakeEngine(language(0, vocab_size=300), vocab_size=300),
        tokenizer=ours(folder, TEMPLATES[name]),
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        decoder.generate([message])


def test_calls_of_tools_need_no_content(folder: Path, theirs: Any) -> None:
    template = "{% for m in messages %}{{ m.role }}{{ m.tool_calls or m.content }}{% endfor %}"
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]
    expected = theirs.apply_chat_template(messages, chat_template=template, tokenize=False)
    assert ours(folder, template).render(messages, add_generation_prompt=False) == expected


def test_a_generation_continues_the_final_message(folder: Path) -> None:
    tokenizer = ours(folder, TEMPLATES["chatml"])
    engine = FakeEngine(language(0, vocab_size=300), vocab_size=300)
    batch = BatchDecoder(engine, tokenizer=tokenizer)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "It is"}]
    generation = batch.submit(messages, continue_final_message=True, max_tokens=2)
    assert tokenizer.decode(generation.prompt, skip_special_tokens=False).endswith("\nIt is")
    one = SpeculativeDecoder(engine, tokenizer=tokenizer)
    again = one.generate(messages, continue_final_message=True, max_tokens=2, echo=True)
    assert [*again.token_ids[:-2]] == generation.prompt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message and add_generation_prompt exclude one another",
        ),
        (
            {"chat_template_kwargs": {"enable_thinkng": False}},
            "the chat template reads no 'enable_thinkng'; it reads enable_thinking",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "'messages' is the prompt itself"),
        (
            {"chat_template_kwargs": {"add_generation_prompt": False}},
            "'add_generation_prompt' is an option of its own",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(
    folder: Path, options: dict[str, Any], message: str
) -> None:
    tokenizer = ours(folder, TEMPLATES["qwen3"])
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer.render([{"role": "user", "content": "hi"}], **options)


@pytest.mark.parametrize(
    "option",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True},
    ],
)
def test_options_of_templates_need_one(folder: Path, option: dict[str, Any]) -> None:
    engine = FakeEngine(language(0, vocab_size=300), vocab_size=300)
    [name] = option
    with_one = SpeculativeDecoder(engine, tokenizer=ours(folder, TEMPLATES["qwen3"]))
    without = SpeculativeDecoder(engine, tokenizer=ours(folder, None))
    with_one.encode("hi", **option)
    for call in (
        lambda: with_one.encode("hi", chat=False, **option),
        lambda: with_one.encode([1, 2], **option),
        lambda: without.encode("hi", **option),
    ):
        with pytest.raises(ValueError, match=f"{name} .*: it is for chat templates"):
            call()


@given(
    prompt=st.lists(st.integers(0, 299), min_size=1, max_size=60),
    wanted=st.integers(1, 70),
    max_tokens=st.integers(1, 60),
)
def test_truncation_keeps_the_end(prompt: list[int], wanted: int, max_tokens: int) -> None:
    engine = FakeEngine(language(0, vocab_size=300), vocab_size=300, max_length=40)
    decoder = SpeculativeDecoder(engine)
    assert decoder.encode(prompt, truncate_prompt_tokens=wanted) == prompt[-wanted:]
    found = decoder.generate(prompt, truncate_prompt_tokens=-1, max_tokens=max_tokens, echo=True)
    kept = found.stats.prompt_tokens
    assert [*found.token_ids[:kept]] == prompt[-kept:]
    assert kept == min(len(prompt), max(1, 40 - max_tokens))
    with pytest.raises(ValueError, match="truncate_prompt_tokens 0: it must be at least 1, or -1"):
        decoder.encode(prompt, truncate_prompt_tokens=0)

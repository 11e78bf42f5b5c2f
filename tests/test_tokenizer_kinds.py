"""Every kind of tokenizer through every door: what is shown, what ends it, and what tells of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import BatchDecoder, NgramDrafter, SamplingParams, SpeculativeDecoder
from specplug.drafters import PredictedSource, TreeDrafter
from tests_support.batching import drain
from tests_support.serving import MODEL, serving
from tests_support.tokenizer_kinds import Kind, Script

WORDS = st.lists(
    st.sampled_from(["fox", " fox", " ", "\n", "\n\n", "é", "狐", "🦊", "5", " the", "  ", "."]),
    max_size=8,
).map("".join)
EXAMPLES = settings(max_examples=12, deadline=None)


@pytest.fixture(scope="module")
def script(kind: Kind) -> Script:
    return Script(kind)


@pytest.fixture(scope="module")
def client(kind: Kind, script: Script) -> Iterator[openai.OpenAI]:
    """OpenAI's own, of a server whose model does as the script says."""
    decoder = BatchDecoder(
        script.engine(rows=2),
        drafter=NgramDrafter(prompt_lookup_min=1),
        draft_tokens=3,
        tokenizer=kind.tokenizer,
    )
    with serving(decoder) as running, running.client() as made:
        yield made
        running.wait_until_free()


def decoder(kind: Kind, script: Script) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        script.engine(),
        drafter=NgramDrafter(prompt_lookup_min=1),
        draft_tokens=3,
        tokenizer=kind.tokenizer,
    )


def text_of(kind: Kind, ids: list[int]) -> str:
    """As transformers has it."""
    return kind.transformers.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def ids_of(kind: Kind, text: str) -> list[int]:
    """Tokens that go on with a text."""
    return kind.tokenizer.encode_after(kind.tokenizer.encode("a"), text)


def answers(kind: Kind) -> st.SearchStrategy[list[int]]:
    """Texts, and any tokens that do not end the answer."""
    any_id = st.integers(0, kind.vocab_size - 1).filter(lambda token: token != kind.end_id)
    return WORDS.map(lambda text: ids_of(kind, text)) | st.lists(any_id, max_size=8)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 40, **fields}
    if fields["logprobs"] is None:
        del fields["logprobs"]
    return client.completions.create(**fields)


@EXAMPLES
@given(data=st.data())
def test_completions(kind: Kind, script: Script, client: openai.OpenAI, data: Any) -> None:
    """Whole, streamed and echoed; log-probabilities tell the same text."""
    prompt = kind.tokenizer.encode("the " + data.draw(WORDS))
    answer = data.draw(answers(kind))
    echo = data.draw(st.booleans())
    script.say(prompt, answer)
    fields = {"prompt": prompt, "logprobs": data.draw(st.sampled_from([None, 0, 3, 20]))}
    choice = complete(client, echo=echo, **fields).choices[0]
    whole = text_of(kind, [*prompt, *answer])
    if echo:
        assert choice.text == whole
    elif "\ufffd" not in whole:
        assert text_of(kind, prompt) + choice.text == whole
    assert choice.finish_reason == "stop"
    assert choice.text == decoder(kind, script).generate(prompt, echo=echo, max_tokens=40).text
    pieces = [c.choices[0] for c in complete(client, echo=echo, stream=True, **fields)]
    assert "".join(piece.text for piece in pieces) == choice.text
    if fields["logprobs"] is None:
        assert choice.logprobs is None
        return
    found = choice.logprobs
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [one for piece in pieces for one in getattr(piece.logprobs, name)]
        assert streamed == getattr(found, name)
    ids = [*prompt * echo, *answer, kind.end_id]
    check_offsets(kind, choice, ids)
    for token, own, top in list(
        zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True)
    )[echo:]:
        values = list(top.values())
        assert values == sorted(values, reverse=True)
        assert own in values
        assert len(top) in (fields["logprobs"], fields["logprobs"] + 1)
        assert top[token] >= own
    by_id = complete(client, echo=echo, extra_body={"return_tokens_as_token_ids": True}, **fields)
    assert by_id.choices[0].logprobs.tokens == [f"token_id:{token}" for token in ids]
    assert by_id.choices[0].logprobs.token_logprobs == found.token_logprobs
    for top in by_id.choices[0].logprobs.top_logprobs[echo:]:
        assert all(re.fullmatch("token_id:[0-9]+", name) for name in top)


def check_offsets(kind: Kind, choice: Any, ids: list[int]) -> None:
    """Where a token's text ends the next one's begins; the tokens' texts are the text."""
    found = choice.logprobs
    assert len(found.tokens) == len(ids)
    assert found.text_offset[0] == 0
    assert found.text_offset == sorted(found.text_offset)
    if "\ufffd" in choice.text:
        return
    ends = [*found.text_offset[1:], len(choice.text)]
    rest = b""  # of a character that is spread over tokens
    for token, name, begin, end in zip(ids, found.tokens, found.text_offset, ends, strict=True):
        shown = choice.text[begin:end]
        if name.startswith("bytes:"):
            rest += name[6:].encode().decode("unicode_escape").encode("latin-1", "replace")
        elif shown:
            assert name == shown
        else:
            assert kind.tokenizer.detokenizer.is_special(token) or token == kind.end_id or not name


@EXAMPLES
@given(data=st.data())
def test_chats(kind: Kind, script: Script, client: openai.OpenAI, data: Any) -> None:
    """Whole and streamed; the bytes of all tokens are the text's."""
    messages = [{"role": "user", "content": "the " + data.draw(WORDS)}]
    prompt = kind.tokenizer.encode_prompt(messages)
    answer = data.draw(answers(kind))
    script.say(prompt, answer)
    fields = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 40}
    fields |= {"logprobs": True, "top_logprobs": 20}
    choice = client.chat.completions.create(**fields).choices[0]
    text = choice.message.content
    whole = text_of(kind, [*prompt, *answer])
    if "\ufffd" not in whole:
        assert text_of(kind, prompt) + text == whole
    pieces = [c.choices[0] for c in client.chat.completions.create(stream=True, **fields)]
    assert "".join(piece.delta.content or "" for piece in pieces) == text
    content = choice.logprobs.content
    streamed = [one for p in pieces if p.logprobs for one in p.logprobs.content]
    assert streamed == content
    assert len(content) == len(answer) + 1
    told = b"".join(bytes(one.bytes or ()) for one in content)
    if "\ufffd" not in whole:
        assert told == text.encode()
    assert content[-1].bytes is None  # the end token
    for one in content:
        assert len(one.top_logprobs) == 20
        values = [other.logprob for other in one.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert one.logprob in values
        if one.bytes and "\ufffd" not in bytes(one.bytes).decode(errors="replace"):
            assert bytes(one.bytes).decode() == one.token


@EXAMPLES
@given(data=st.data())
def test_stop_strings(kind: Kind, script: Script, client: openai.OpenAI, data: Any) -> None:
    """Wherever tokens end: nothing from its beginning on is shown, in no piece."""
    prompt, answer = kind.tokenizer.encode("the fox"), ids_of(kind, data.draw(WORDS))
    script.say(prompt, answer)
    whole = decoder(kind, script).generate(prompt, max_tokens=40).text
    begin = data.draw(st.integers(0, len(whole)))
    stop = whole[begin : begin + data.draw(st.integers(1, 4))] or "never"
    expected = whole[: whole.find(stop)] if stop in whole else whole
    result = decoder(kind, script).generate(prompt, stop=stop, max_tokens=40)
    assert (result.text, result.finish_reason) == (expected, "stop")
    shown = ""
    for token in decoder(kind, script).stream(prompt, stop=stop, max_tokens=40):
        shown += token.text
        assert expected.startswith(shown)
    batch = BatchDecoder(script.engine(2), tokenizer=kind.tokenizer, draft_tokens=0)
    generation = batch.submit(prompt, stop=stop, max_tokens=40)
    assert "".join(map(str, drain(batch)[generation])) == expected
    fields = {"prompt": prompt, "stop": stop, "logprobs": 1}
    assert complete(client, **fields).choices[0].text == expected
    pieces = complete(client, stream=True, **fields)
    assert "".join(piece.choices[0].text for piece in pieces) == expected


def test_an_end_token_is_no_part_of_the_answer(
    kind: Kind, script: Script, client: openai.OpenAI
) -> None:
    """Flagged special or not, also where a grammar lets the answer end."""
    prompt = kind.tokenizer.encode("the fox")
    script.say(prompt, ids_of(kind, "5"))
    plain = decoder(kind, script)
    result = plain.generate(prompt, max_tokens=9)
    assert result.text == "".join(map(str, plain.stream(prompt, max_tokens=9))) == "5"
    assert result.token_ids[-1] == kind.end_id
    assert complete(client, prompt=prompt, logprobs=None).choices[0].text == "5"
    if kind.name == "metaspace":  # llguidance knows no such tokenizers
        return
    for how in ({"json_schema": {"type": "integer"}}, {"regex": "[0-9]+"}):
        params = SamplingParams(temperature=0, **how)
        assert json.loads(plain.generate(prompt, sampling=params, max_tokens=9).text) == 5
    spelt = [token for part in ('"<tur', 'n> fox"') for token in ids_of(kind, part)]
    script.say(prompt, spelt)  # the same text of other tokens
    params = SamplingParams(json_schema={"type": "string"})
    assert json.loads(plain.generate(prompt, sampling=params).text) == "<turn> fox"


@EXAMPLES
@given(data=st.data())
def test_special_tokens_and_stops_are_shown_where_asked_for(
    kind: Kind, script: Script, client: openai.OpenAI, data: Any
) -> None:
    """As transformers shows them; the end token's own text only with the stop included."""
    prompt, answer = kind.tokenizer.encode("the fox"), data.draw(answers(kind))
    script.say(prompt, answer)
    skip, include = data.draw(st.booleans()), data.draw(st.booleans())
    options = {"skip_special_tokens": skip, "include_stop_str_in_output": include}
    result = decoder(kind, script).generate(prompt, echo=True, max_tokens=40, **options)
    shown = [*prompt, *answer, *[kind.end_id] * include]
    assert result.text == kind.transformers.decode(
        shown, skip_special_tokens=skip, clean_up_tokenization_spaces=False
    )
    if "\ufffd" not in result.text:
        assert b"".join(token.utf8 for token in result.tokens).decode() == result.text
    alone = decoder(kind, script).generate(prompt, max_tokens=40, **options)
    made = complete(client, prompt=prompt, logprobs=None, extra_body=options)
    assert made.choices[0].text == alone.text
    if "\ufffd" not in result.text:
        assert result.text.endswith(alone.text)
    if not alone.text:
        return
    begin = data.draw(st.integers(0, len(alone.text) - 1))
    stop = alone.text[begin : begin + 2]
    stopped = decoder(kind, script).generate(prompt, stop=stop, max_tokens=40, **options)
    end = alone.text.find(stop) + len(stop) * include
    assert stopped.text == alone.text[:end]


@EXAMPLES
@given(data=st.data())
def test_before_min_tokens_stop_strings_are_text(kind: Kind, script: Script, data: Any) -> None:
    """And one that comes to its end later ends the answer, wherever tokens end."""
    prompt, answer = kind.tokenizer.encode("the fox"), ids_of(kind, data.draw(WORDS) + " the end")
    script.say(prompt, answer)
    least = data.draw(st.integers(0, len(answer)))
    pieces = [one.utf8 for one in decoder(kind, script).generate(prompt, max_tokens=40).tokens]
    whole = b"".join(pieces).decode()
    exempt = len(b"".join(pieces[:least]).decode(errors="ignore"))
    stop = data.draw(st.sampled_from([whole[n : n + 2] for n in range(len(whole))]))
    ends = [n for n in range(exempt + 1, len(whole) + 1) if whole[:n].endswith(stop)]
    result = decoder(kind, script).generate(prompt, stop=stop, min_tokens=least, max_tokens=40)
    assert result.text == (whole[: ends[0] - len(stop)] if ends else whole)


@pytest.mark.parametrize("text", ["fox", " fox", "the fox", "\nfox"])
def test_bad_words_are_not_said(kind: Kind, script: Script, text: str) -> None:
    """Whether a space comes before or not, as the tokenizer spells them there."""
    prompt = kind.tokenizer.encode("the fox jumps")
    script.say(prompt, ids_of(kind, text))
    made = decoder(kind, script)
    assert "fox" in made.generate(prompt, max_tokens=9).text
    assert "fox" not in made.generate(prompt, bad_words=["fox"], max_tokens=9).text


def test_an_ignored_end_token_is_a_token_like_any(kind: Kind, script: Script) -> None:
    """Special ones are left out, others are text, and the answer goes on."""
    prompt, fox = kind.tokenizer.encode("the fox"), ids_of(kind, " fox")
    script.say(prompt, [kind.end_id, *fox])
    options = {"ignore_eos": True, "max_tokens": 1 + len(fox)}
    result = decoder(kind, script).generate(prompt, **options)
    assert result.text == ("" if kind.special else kind.end) + " fox"
    assert result.finish_reason == "length"
    shown = decoder(kind, script).generate(prompt, skip_special_tokens=False, **options)
    assert shown.text == kind.end + " fox"


@EXAMPLES
@given(data=st.data())
def test_a_prediction_that_is_the_answer_is_accepted(
    kind: Kind, script: Script, client: openai.OpenAI, data: Any
) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    prompt = kind.tokenizer.encode_prompt(messages)
    text = data.draw(WORDS.filter(bool))
    answer = ids_of(kind, text)
    script.say(prompt, answer)
    fields = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 40}
    said = client.chat.completions.create(**fields).choices[0].message.content
    if not said or (kind.name == "metaspace" and "<unk>" in kind.backend.encode(text).tokens):
        return
    made = client.chat.completions.create(prediction={"type": "content", "content": said}, **fields)
    details = made.usage.completion_tokens_details
    assert details.rejected_prediction_tokens == 0
    assert details.accepted_prediction_tokens == len(answer)
    drafted = SpeculativeDecoder(
        script.engine(),
        drafter=TreeDrafter("predicted", [PredictedSource()]),
        draft_tokens=8,
        tokenizer=kind.tokenizer,
    ).generate(prompt, prediction=said, max_tokens=40)
    assert drafted.stats.accepted == drafted.stats.drafted >= min(1, len(answer) - 1)

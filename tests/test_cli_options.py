"""Every option of a generation on the command line is the field of the same name in Python."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from specplug import SamplingParams, SpeculativeDecoder, cli
from specplug.cli import console
from specplug.cli.options import ANSWER, PROMPT, SAMPLING, TEMPLATE
from specplug.generation_options import CallOptions
from tests_support.command import specplug

ELSEWHERE = {"processors", "cancelled", "sampling", "sample", "tenant", "speculation"}
"""Callables, and what has another form on the command line: -n, --drafter none."""

TAG = '{"format": {"type": "any_text"}}'
GIVEN: dict[str, tuple[list[str], Any]] = {
    "typical_p": (["0.5"], 0.5),
    "repetition_penalty": (["1.5"], 1.5),
    "presence_penalty": (["0.5"], 0.5),
    "frequency_penalty": (["-0.5"], -0.5),
    "no_repeat_ngram": (["3"], 3),
    "logit_bias": (['{"5": -1.5}'], {5: -1.5}),
    "banned_tokens": (["5,6"], [5, 6]),
    "bad_words_ids": (["[[1, 2], [3]]"], [[1, 2], [3]]),
    "allowed_token_ids": (["[7, 8]"], [7, 8]),
    "forced_tokens": (['{"0": 7}'], {0: 7}),
    "json_schema": (['{"type": "null"}'], '{"type": "null"}'),
    "json_object": ([], True),
    "regex": (["a+"], "a+"),
    "choice": (["yes", "no"], ["yes", "no"]),
    "grammar": (["start: /a/"], "start: /a/"),
    "structural_tag": ([TAG], TAG),
    "min_tokens": (["2"], 2),
    "stop": (["a", "b"], ["a", "b"]),
    "stop_token_ids": (["3"], [3]),
    "ignore_eos": ([], True),
    "include_stop_str_in_output": ([], True),
    "skip_special_tokens": ([], True),
    "bad_words": (["this", "that"], ["this", "that"]),
    "chat_template_kwargs": (['{"enable_thinking": false}'], {"enable_thinking": False}),
    "truncate_prompt_tokens": (["-1"], -1),
    "add_generation_prompt": ([], True),
    "continue_final_message": ([], True),
    "logprobs": (["2"], 2),
    "logprobs_mode": (["processed"], "processed"),
    "prompt_logprobs": (["1"], 1),
    "echo": ([], True),
    "prediction": (["text"], "text"),
    "chat": ([], True),
    "max_tokens": (["7"], 7),
    "temperature": (["0.5"], 0.5),
    "top_k": (["3"], 3),
    "top_p": (["0.9"], 0.9),
    "min_p": (["0.1"], 0.1),
    "seed": (["9"], 9),
    "acceptance": (["block"], "block"),
}


def spelled(name: str) -> list[str]:
    values, _ = GIVEN[name]
    option = "--" + name.replace("_", "-")
    return [word for value in values for word in (option, value)] if values else [option]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of its decoder, in place of running one."""
    found: dict[str, Any] = {}

    class Recorder:
        tokenizer = None
        prompt_logprobs = None

        def encode(self, prompt: Any, **options: Any) -> list[int]:
            found.update(prompt=prompt, **options)
            return [1]

        def stream(self, ids: Any, **options: Any) -> list[Any]:
            found.update(options)
            return []

    @contextmanager
    def opened(*_: Any, **__: Any):
        yield Recorder()

    monkeypatch.setattr(console, "open_decoder", opened)
    monkeypatch.setattr(console, "closing_line", lambda _: "")
    return found


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, [*arguments], catch_exceptions=False)


def test_every_field_has_an_option() -> None:
    names = {field.name for field in fields(SamplingParams)} | CallOptions.__annotations__.keys()
    assert names - ELSEWHERE == set(GIVEN)
    shared = {*SAMPLING, *ANSWER, *PROMPT}
    assert shared <= set(GIVEN)
    assert set(TEMPLATE) <= set(PROMPT)


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_is_its_field(asked: dict[str, Any], tmp_path: Path, name: str) -> None:
    done = run("generate", str(tmp_path), "hello", *spelled(name))
    assert done.exit_code == 0, done.output
    field_names = {field.name for field in fields(SamplingParams)}
    found = getattr(asked["sampling"], name) if name in field_names else asked[name]
    assert (list(found) if isinstance(found, tuple) else found) == GIVEN[name][1]
    rest = {"sampling", "prompt", "sample", "max_tokens", "logprobs", "logprobs_mode", "chat",
            "prompt_logprobs", "echo", "prediction"}  # fmt: skip
    assert set(asked) - rest <= {name}  # nothing else is asked for


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--no-skip-special-tokens"], "skip_special_tokens", False),
        (["--no-add-generation-prompt"], "add_generation_prompt", False),
        (["--raw"], "chat", False),
    ],
)
def test_options_that_are_turned_off(
    asked: dict[str, Any], tmp_path: Path, words: list[str], field: str, value: bool
) -> None:
    assert run("generate", str(tmp_path), "hello", *words).exit_code == 0
    assert asked[field] is value


def test_files_are_read(asked: dict[str, Any], tmp_path: Path) -> None:
    grammar, tag = tmp_path / "grammar", tmp_path / "tag.json"
    grammar.write_text('root ::= "é"', encoding="utf-8")
    tag.write_text('{"format": {"type": "any_text"}}')
    run("generate", str(tmp_path), "hello", "--grammar", f"@{grammar}")
    assert asked["sampling"].grammar == 'root ::= "é"'
    run("generate", str(tmp_path), "hello", "--structural-tag", str(tag))
    assert json.loads(asked["sampling"].structural_tag) == {"format": {"type": "any_text"}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--logit-bias", "5"], "--logit-bias"),
        (["--logit-bias", '{"5": 1, "5": 2}'], "--logit-bias: the field '5' is there twice"),
        (["--logit-bias", '{"5": 1, "05": 2}'], "--logit-bias: 5 is there twice"),
        (["--forced-tokens", '{"0": 1, "00": 2}'], "--forced-tokens: 0 is there twice"),
        (["--logit-bias", "[" * 100_000], "--logit-bias: not JSON"),
        (["--stop-token-ids", "a"], "--stop-token-ids"),
        (["--stop-token-ids", "1,x"], "--stop-token-ids '1,x': need token ids, such as 1,2,3"),
        (["--stop-token-ids", ""], "--stop-token-ids '': need token ids, such as 1,2,3"),
        (["--structural-tag", "missing.json"], "--structural-tag missing.json: neither JSON nor a"),
        (["--choice", "a", "--regex", "a"], "regex and choice exclude one another"),
        (["--chat-template-kwargs", "[]"], "--chat-template-kwargs"),
        (["--messages"], "--messages: not JSON"),
        (["--typical-p", "0"], "typical_p 0.0: it must be in (0, 1]"),
    ],
)
def test_wrong_values_are_named(
    asked: dict[str, Any], tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run("generate", str(tmp_path), "hello", *words)
    assert not asked


def test_the_commands_themselves(tiny_bundle: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]
    words = ["--messages", "--continue-final-message", "--min-tokens", "5", "--max-tokens", "9"]
    words += ["--prompt-logprobs", "1", "--bad-words", "is", "--no-skip-special-tokens", "--json"]
    done = specplug("generate", tiny_bundle, json.dumps(messages), *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with SpeculativeDecoder.from_bundle(tiny_bundle) as decoder:
        ids = decoder.encode(messages, continue_final_message=True)
        expected = decoder.generate(
            ids,
            min_tokens=5,
            max_tokens=9,
            prompt_logprobs=1,
            bad_words=["is"],
            skip_special_tokens=False,
        )
    assert found["token_ids"] == list(expected.token_ids)
    assert found["text"] == expected.text
    assert [one and one["logprob"] for one in found["prompt_logprobs"]] == [
        one and pytest.approx(one.chosen) for one in expected.prompt_logprobs or ()
    ]
    chatting = ["--choice", "yes", "--choice", "no", "--max-tokens", "9"]
    spoken = specplug("chat", tiny_bundle, *chatting, text="hello\n/exit\n")
    assert spoken.returncode == 0, spoken.stderr
    assert spoken.stdout.strip() in ("yes", "no")

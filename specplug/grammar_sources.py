"""What an answer must look like, in the forms that callers say it in, as llguidance takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from specplug.arguments import shown as shown_value
from specplug.gbnf import is_gbnf, lark_of, literal
from specplug.library_errors import LibraryError
from specplug.option_values import TwiceError, once
from specplug.structural_tags import as_json, structural_grammar

if TYPE_CHECKING:
    from specplug.sampling import SamplingParams
    from specplug.text import Tokenizer


def compile_grammar(params: SamplingParams, tokenizer: Tokenizer) -> tuple[str, str]:
    """A grammar that an ``llguidance.LLMatcher`` takes, and what errors call it.

    Args:
        params: of which one parameter asks for a form.
        tokenizer: of the target.

    Raises:
        ValueError: naming the parameter: it is not of its form.
    """
    from llguidance import LLMatcher

    [name] = params.forms
    value = getattr(params, name)
    shown = "json_object" if name == "json_object" else f"{name} {_short(value)}"
    try:
        if name == "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}'), shown
        if name == "json_schema":
            return LLMatcher.grammar_from_json_schema(_json(value)), shown
        if name == "regex":
            return LLMatcher.grammar_from_regex(value), shown
        if name == "choice":
            return LLMatcher.grammar_from_lark(_choice(value)), shown
        if name == "grammar":
            return LLMatcher.grammar_from_lark(_lark(value)), shown
        special = tokenizer.special_ids()
        return LLMatcher.grammar_from_lark(structural_grammar(_tag(value), special)), shown
    except RecursionError:
        raise ValueError(f"{shown}: it is nested too deeply") from None
    except ValueError as error:
        raise LibraryError(shown, one_line(str(error))) from error


def one_line(message: str) -> str:
    """What llguidance says is wrong, without its drawing of where."""
    lines = [line.strip() for line in message.splitlines()]
    found = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "")
    return found.removeprefix("error: ")


def _json(schema: Mapping[str, Any] | bool | str) -> str:
    if not isinstance(schema, str):
        return as_json(schema)
    try:
        json.loads(schema, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        twice = isinstance(error, TwiceError)
        raise ValueError(f"{error}" if twice else f"it is not JSON: {error}") from error
    return schema


def _lark(grammar: str) -> str:
    return lark_of(grammar) if is_gbnf(grammar) else grammar


def _choice(texts: Sequence[str]) -> str:
    if isinstance(texts, str) or not len(texts):
        raise ValueError("it must be a list of texts, not empty")
    return "start: " + " | ".join(literal(one) for one in texts)


def _tag(tag: Mapping[str, Any] | str) -> Mapping[str, Any]:
    found = json.loads(tag, object_pairs_hook=once) if isinstance(tag, str) else tag
    if not isinstance(found, Mapping):
        raise ValueError("it must be a JSON object")
    return found


def _short(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else as_json(value)
    except ValueError:  # what has no JSON
        return shown_value(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."

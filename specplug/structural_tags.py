"""Structural tags as a grammar: free text in which what a trigger begins has a given form.

Both forms that servers take are read: ``{"structures": …, "triggers": …}`` and ``{"format": …}``,
https://docs.vllm.ai/en/latest/features/structured_outputs. The grammar is in llguidance's Lark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from specplug.gbnf import literal

_ANY = "/(?s:.*)/"


def as_json(value: object) -> str:
    """A value as JSON.

    Raises:
        ValueError: it has what JSON does not have, or itself within itself.
    """
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error


def structural_grammar(tag: Mapping[str, Any], special_tokens: Mapping[str, int]) -> str:
    """The Lark grammar of a structural tag.

    Args:
        tag: with ``structures`` (each ``begin``, ``schema`` and ``end``) and ``triggers``, or with
            ``format``.
        special_tokens: ids by text; where a tag has one of them, that token itself must come.

    Raises:
        ValueError: it is neither, or a format that is not supported, by name.
    """
    rest = {name: value for name, value in tag.items() if name != "type"}
    if tag.get("type", "structural_tag") != "structural_tag":
        raise ValueError(f"type {tag['type']!r}: it must be structural_tag")
    if rest.keys() == {"structures", "triggers"}:
        tags = [
            {
                "begin": one.get("begin"),
                "content": {"type": "json_schema", "json_schema": one.get("schema")},
                "end": one.get("end"),
            }
            for one in _objects("structures", rest["structures"], {"begin", "schema", "end"})
        ]
        form = {"type": "triggered_tags", "triggers": rest["triggers"], "tags": tags}
    elif rest.keys() == {"format"}:
        form = rest["format"]
    else:
        raise ValueError(
            f"it has {', '.join(sorted(rest)) or 'nothing'}: it must have structures and triggers, "
            "or format"
        )
    return _Writer(special_tokens).whole(form)


class _Writer:
    """Rules of a grammar, written as they are found."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special = special_tokens
        self._rules: list[str] = []

    def whole(self, form: Any) -> str:
        return "\n".join(["%llguidance {}", f"start: {self._form(form, last=True)}", *self._rules])

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def _form(self, form: Any, *, last: bool) -> str:
        """An expression for a format; ``last``: nothing comes after it."""
        if not isinstance(form, Mapping):
            raise ValueError(f"format {form!r}: it must be an object with a type")
        kind = form.get("type")
        if not isinstance(kind, str) or kind not in FORMATS:
            raise ValueError(f"format type {kind!r}: it must be one of {', '.join(FORMATS)}")
        required, optional = FORMATS[kind]
        fields = form.keys() - {"type"}
        missing, unknown = required - fields, fields - required - optional
        if missing or unknown:
            what = f"needs {min(missing)}" if missing else f"has no {min(unknown)}"
            raise ValueError(f"format {kind} {what}: its fields are {', '.join(sorted(required))}")
        if kind == "any_text" and not last:
            raise ValueError("format any_text: it must come last, or be a tag's content")
        write: Callable[..., str] = getattr(self, f"_{kind}")
        return write(form, last)

    def _const_string(self, form: Mapping[str, Any], last: bool) -> str:
        return self._text(form["value"])

    def _json_schema(self, form: Mapping[str, Any], last: bool) -> str:
        schema = form["json_schema"]
        if not isinstance(schema, Mapping | bool):
            raise ValueError(f"json_schema {schema!r}: it must be a JSON schema")
        return self._rule(f"%json {as_json(schema)}")

    def _regex(self, form: Mapping[str, Any], last: bool) -> str:
        pattern = _string("pattern", form["pattern"])
        return self._rule("/" + re.sub(r"\\.|/", lambda at: _escaped(at[0]), pattern) + "/")

    def _any_text(self, form: Mapping[str, Any], last: bool) -> str:
        return self._rule(_ANY)

    def _sequence(self, form: Mapping[str, Any], last: bool) -> str:
        elements = _list("elements", form["elements"])
        return self._rule(
            " ".join(
                self._form(one, last=last and place == len(elements) - 1)
                for place, one in enumerate(elements)
            )
        )

    def _or(self, form: Mapping[str, Any], last: bool) -> str:
        elements = _list("elements", form["elements"])
        return self._rule(" | ".join(self._form(one, last=last) for one in elements))

    def _tag(self, form: Mapping[str, Any], last: bool) -> str:
        begin = _string("begin", form["begin"])
        return self._rule(f"{self._text(begin)} {self._body(form)}")

    def _body(self, tag: Mapping[str, Any]) -> str:
        """The content of a tag and its end."""
        end, content = _string("end", tag["end"], empty=True), tag["content"]
        if isinstance(content, Mapping) and content.get("type") == "any_text" and end:
            return self._until(end)
        return f"{self._form(content, last=not end)} {self._text(end)}"

    def _until(self, text: str) -> str:
        """Free text, up to and including the first of a text."""
        first, *others = self._pieces(text)
        if first in self._special:  # which is no part of free text
            return f"{self._rule(_ANY)} {self._text(text)}"
        found = self._rule(f"{_ANY} {literal(first)}", "[lazy]")
        return " ".join([found, *map(self._text, others)])

    def _triggered_tags(self, form: Mapping[str, Any], last: bool) -> str:
        triggers = [_string("triggers", one) for one in _list("triggers", form["triggers"])]
        bodies = []
        for tag in _tags(form["tags"]):
            begin = tag["begin"]
            found = max((one for one in triggers if begin.startswith(one)), key=len, default=None)
            if found is None:
                raise ValueError(f"begin {begin!r}: it must start with one of the triggers")
            rest = self._text(begin[len(found) :])
            bodies.append(self._rule(f"{self._until(found)} {rest} {self._body(tag)}"))
        if not last:
            raise ValueError("format triggered_tags: it must come last")
        return f"({' | '.join(bodies)})* {self._rule(_ANY)}"

    def _tags_with_separator(self, form: Mapping[str, Any], last: bool) -> str:
        one = f"({' | '.join(self._tag(tag, False) for tag in _tags(form['tags']))})"
        separator = _string("separator", form["separator"], empty=True)
        more = "" if form.get("stop_after_first") else f" ({self._text(separator)} {one})*"
        return f"({one}{more}){'' if form.get('at_least_one') else '?'}"

    def _text(self, text: Any) -> str:
        """Exactly this text, special tokens in it being themselves."""
        pieces = self._pieces(_string("a text", text, empty=True))
        return " ".join(
            f"<[{self._special[one]}]>" if one in self._special else literal(one) for one in pieces
        )

    def _pieces(self, text: str) -> list[str]:
        if not self._special:
            return [text]
        names = sorted(self._special, key=len, reverse=True)
        found = re.split(f"({'|'.join(map(re.escape, names))})", text)
        return [one for one in found if one] or [""]


FORMATS: Mapping[str, tuple[set[str], set[str]]] = {
    "const_string": ({"value"}, set()),
    "json_schema": ({"json_schema"}, set()),
    "regex": ({"pattern"}, set()),
    "any_text": (set(), set()),
    "sequence": ({"elements"}, set()),
    "or": ({"elements"}, set()),
    "tag": ({"begin", "content", "end"}, set()),
    "triggered_tags": ({"triggers", "tags"}, set()),
    "tags_with_separator": ({"tags", "separator"}, {"at_least_one", "stop_after_first"}),
}
"""The fields that a format of this type must have, and those that it may have."""


def _escaped(found: str) -> str:
    return "\\/" if found == "/" else found


def _string(name: str, value: Any, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(f"{name} {value!r}: it must be text{'' if empty else ', not empty'}")
    return value


def _list(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} {value!r}: it must be a list, not empty")
    return value


def _objects(name: str, value: Any, fields: set[str]) -> Iterator[Mapping[str, Any]]:
    for one in _list(name, value):
        if not isinstance(one, Mapping) or one.keys() != fields:
            raise ValueError(f"{name} {one!r}: each must have {', '.join(sorted(fields))}")
        yield one


def _tags(value: Any) -> Iterator[Mapping[str, Any]]:
    for one in _list("tags", value):
        plain = {k: v for k, v in one.items() if k != "type"} if isinstance(one, Mapping) else one
        [tag] = _objects("tags", [plain], {"begin", "content", "end"})
        _string("begin", tag["begin"])
        yield tag

"""What an answer must be like: one of several fields, from several servers, as sampling has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from specplug.library_errors import public_text
from specplug.option_values import once
from specplug.serving.errors import ApiError
from specplug.serving.requests import (
    GenerateRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuralTagFormat,
    StructuredOutputs,
)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be like."""

    field: str
    """Where the request says so, such as ``"structured_outputs.regex"``."""
    name: str
    """The argument of :class:`specplug.SamplingParams`."""
    value: Any


def constraint(request: GenerateRequest) -> Constraint | None:
    """The request's only constraint, if it has one.

    Raises:
        ApiError: status 400: it has several, or one without meaning.
    """
    found = [*_constraints(request)]
    if not found:
        return None
    first, *more = found
    if more:
        raise ApiError(
            400, f"{more[0].field}: {first.field} says what the answer is like: give one of them",
            param=more[0].field,
        )  # fmt: skip
    if request.guided_whitespace_pattern is not None:
        return _spaced(first, request.guided_whitespace_pattern, "guided_whitespace_pattern")
    return first


def constrained(request: GenerateRequest) -> bool:
    """Whether a request may have a constraint, told without a look into it."""
    return (
        request.response_format is not None
        or request.structured_outputs is not None
        or any(getattr(request, field) is not None for field in _FIELDS)
    )


def _constraints(request: GenerateRequest) -> Iterator[Constraint]:
    match request.response_format:
        case JsonObjectFormat(schema_=schema):
            wanted = (
                {"type": "object"} if schema is None else schema
            )  # which llama.cpp takes as it is
            yield Constraint("response_format", "json_schema", wanted)
        case JsonSchemaFormat(json_schema=named):
            yield Constraint("response_format", "json_schema", named.schema_)
        case StructuralTagFormat() as tag:
            value = tag.model_dump(by_alias=True, exclude_none=True)
            yield Constraint("response_format", "structural_tag", value)
    if request.structured_outputs is not None:
        yield from _structured(request.structured_outputs)
    for field, name in _FIELDS.items():
        value = getattr(request, field)
        if value is not None and value != "":
            yield Constraint(field, name, value)


_FIELDS = {
    "json_schema": "json_schema",
    "guided_json": "json_schema",
    "regex": "regex",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "grammar": "grammar",
    "ebnf": "grammar",
    "guided_grammar": "grammar",
    "structural_tag": "structural_tag",
}


def _structured(outputs: StructuredOutputs) -> Iterator[Constraint]:
    """Of vLLM's object, whose flags are about JSON."""
    given = {
        name: value
        for name, value in (
            ("json", outputs.json_),
            ("json_object", {"type": "object"} if outputs.json_object else None),
            ("regex", outputs.regex),
            ("choice", outputs.choice),
            ("grammar", outputs.grammar),
            ("structural_tag", outputs.structural_tag),
        )
        if value is not None
    }
    if not given and outputs.json_object is None:
        raise ApiError(
            400, "structured_outputs: it says nothing of the answer: give json, regex, choice, "
            "grammar, json_object or structural_tag",
            param="structured_outputs",
        )  # fmt: skip
    for name, value in given.items():
        field = f"structured_outputs.{name}"
        made = Constraint(field, "json_schema" if name in ("json", "json_object") else name, value)
        for flag, change in _FLAGS.items():
            wanted = getattr(outputs, flag)
            if wanted:
                made = change(made, wanted, f"structured_outputs.{flag}")
        yield made


def _compact(made: Constraint, wanted: bool, flag: str) -> Constraint:
    return _guided(made, flag, whitespace_flexible=False)


def _spaced(made: Constraint, pattern: str, flag: str) -> Constraint:
    return _guided(made, flag, whitespace_pattern=pattern)


def _closed(made: Constraint, wanted: bool, flag: str) -> Constraint:
    try:
        closed = _without_more(_schema_of(made, flag))
    except RecursionError:
        raise ApiError(400, f"{made.field}: it is nested too deeply", param=made.field) from None
    return Constraint(made.field, made.name, closed)


_FLAGS: dict[str, Callable[[Constraint, Any, str], Constraint]] = {
    "disable_additional_properties": _closed,
    "disable_any_whitespace": _compact,
    "whitespace_pattern": _spaced,
}


def _guided(made: Constraint, flag: str, **options: object) -> Constraint:
    """The same schema, with options of the grammar's library."""
    schema = _schema_of(made, flag)
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    options = {**schema.get("x-guidance", {}), **options}
    return Constraint(made.field, made.name, {**schema, "x-guidance": options})


def _schema_of(made: Constraint, flag: str) -> dict[str, Any] | bool:
    """The schema that a flag is about."""
    if made.name != "json_schema":
        raise ApiError(400, f"{flag}: it is about JSON, and {made.field} is none", param=flag)
    return _parsed(made.value, made.field)


def _parsed(schema: Mapping[str, Any] | bool | str, field: str) -> dict[str, Any] | bool:
    if isinstance(schema, bool):
        return schema
    found: object = schema
    if isinstance(schema, str):
        try:
            found = json.loads(schema, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            why = public_text(error)
            raise ApiError(400, f"{field}: it is not JSON: {why}", param=field) from None
    if not isinstance(found, dict | bool):
        raise ApiError(400, f"{field}: a schema is an object, true or false", param=field)
    return found


def _without_more(schema: Any) -> Any:
    """A schema whose objects have the properties that it names, and no others."""
    if isinstance(schema, list):
        return [_without_more(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _without_more(one) for name, one in schema.items()}
    if "properties" in made or "patternProperties" in made:
        made.setdefault("additionalProperties", False)
    return made

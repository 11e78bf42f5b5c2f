"""The options of a generation beyond the usual ones, in one table that commands share.

A command that :func:`takes` decorates has an option for each row, in place of a parameter ``more``.
What an option is if it is not given is said where its field is documented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from specplug import option_values as values
from specplug.sampling import SamplingParams
from specplug.text_file import read_text

More = dict[str, Any]
"""The options given, by name."""


@dataclass(frozen=True, slots=True)
class Row:
    """One option; its name is the field's, with dashes."""

    help: str
    kind: Any = str
    read: Callable[[str, Any], Any] = lambda _, value: value
    """From what typer gives to the field's value; the first argument is the option's name."""
    metavar: str | None = None


def _file_or_text(name: str, value: str) -> str:
    """The text, of which the option may name the file: ``@FILE``."""
    return read_text(Path(value[1:]), name) if value.startswith("@") else value


def _json_or_file(name: str, value: str) -> str:
    """The JSON, of which the option may name the file."""
    if value.lstrip().startswith(("{", "true", "false")):
        return value
    path = Path(value)
    if not path.is_file():
        raise ValueError(f"{name} {value}: neither JSON nor a file")
    return read_text(path, name)


_IDS = "ID,ID,…"

SAMPLING: Mapping[str, Row] = {
    "typical_p": Row("Of tokens whose surprise is nearest to the entropy, up to this mass.", float),
    "repetition_penalty": Row("Divides the logits of tokens that occurred.", float),
    "presence_penalty": Row("Taken from the logits of tokens that the answer has.", float),
    "frequency_penalty": Row("As --presence-penalty, for each time.", float),
    "no_repeat_ngram": Row("No so many tokens in a row occur twice.", int, metavar="N"),
    "logit_bias": Row("Added to logits, by token id.", read=values.biases, metavar="JSON"),
    "banned_tokens": Row("Never chosen.", read=values.wholes, metavar=_IDS),
    "bad_words_ids": Row(
        "Sequences of tokens that are never completed.", read=values.whole_lists, metavar="JSON"
    ),
    "allowed_token_ids": Row("Only these are chosen.", read=values.wholes, metavar=_IDS),
    "forced_tokens": Row(
        "Token ids by position in the answer, from 0.", read=values.positions, metavar="JSON"
    ),
    "json_schema": Row(
        "Answer in JSON of this schema: JSON, or a file.", read=_json_or_file, metavar="SCHEMA"
    ),
    "json_object": Row("Answer with a JSON object.", bool),
    "regex": Row("Answer with text that as a whole matches this expression."),
    "choice": Row("Answer with this text, or another --choice.", list[str]),
    "grammar": Row(
        "Answer with text of this grammar: Lark, or GBNF (with ::=).",
        read=_file_or_text,
        metavar="TEXT|@FILE",
    ),
    "structural_tag": Row(
        "Answer with text whose tagged parts have a form: JSON, or a file.",
        read=_json_or_file,
        metavar="JSON",
    ),
}
"""Fields of :class:`specplug.SamplingParams`."""

ANSWER: Mapping[str, Row] = {
    "min_tokens": Row("New tokens before anything ends the answer.", int),
    "stop": Row("A string that ends the answer, not shown. Repeatable.", list[str]),
    "stop_token_ids": Row(
        "Tokens that end the answer, beside the model's own.", read=values.wholes, metavar=_IDS
    ),
    "ignore_eos": Row("The model's own stop tokens do not end the answer.", bool),
    "include_stop_str_in_output": Row("Show the stop string or stop token, too.", bool),
    "skip_special_tokens": Row(
        "Leave special tokens out of the text, or not. Default: leave out.", bool
    ),
    "bad_words": Row("A word that is never completed. Repeatable.", list[str]),
}
"""Fields of :class:`specplug.generation_options.GenerationOptions`."""

TEMPLATE: Mapping[str, Row] = {
    "chat_template_kwargs": Row(
        'Variables for the chat template, such as {"enable_thinking": false}.',
        read=values.table,
        metavar="JSON",
    ),
    "truncate_prompt_tokens": Row(
        "Keep only so many tokens of the prompt, the last ones; -1: what the context has room for.",
        int,
    ),
}
PROMPT: Mapping[str, Row] = {
    **TEMPLATE,
    "add_generation_prompt": Row(
        "End the prompt with the header of an assistant's turn, or not. Default: yes.", bool
    ),
    "continue_final_message": Row("Have the answer continue the final message.", bool),
}
"""Fields of :class:`specplug.prompts.PromptOptions`."""

_BOTH_WAYS = ("skip_special_tokens", "add_generation_prompt")


def takes(*tables: Mapping[str, Row]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a command take the options of tables, in place of its parameter ``more``.

    The parameter gets the values of those that are given, by name, each as its row reads it.
    """
    rows = {name: row for table in tables for name, row in table.items()}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)

        @wraps(command)
        def called(**arguments: Any) -> None:
            given = {name: arguments.pop(name, None) for name in rows}
            more = {
                name: rows[name].read(_option(name), value)
                for name, value in given.items()
                if value is not None and value != [] and (value is not False or name in _BOTH_WAYS)
            }
            command(**arguments, more=more)

        parameters: list[Parameter] = []
        for parameter in signature(command).parameters.values():
            if parameter.name == "more":
                parameters += [_parameter(name, row) for name, row in rows.items()]
            else:
                parameters.append(parameter.replace(annotation=hints[parameter.name]))
        called.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called

    return decorate


def sampling_fields(more: More) -> More:
    """Those of the options that are fields of :class:`specplug.SamplingParams`."""
    names = {field.name for field in fields(SamplingParams)}
    return {name: value for name, value in more.items() if name in names}


def other_fields(more: More) -> More:
    """Those that are not."""
    own = sampling_fields(more)
    return {name: value for name, value in more.items() if name not in own}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parameter(name: str, row: Row) -> Parameter:
    spelled = _option(name)
    if name in _BOTH_WAYS:
        spelled += f"/--no-{spelled[2:]}"
    option = typer.Option(spelled, help=row.help, metavar=row.metavar, show_default=False)
    kind: Any = row.kind | None
    return Parameter(
        name, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[kind, option]
    )

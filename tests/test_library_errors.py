"""Words of libraries: what of them reaches whoever sent a request, and what does not."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import specplug
from specplug import SamplingParams
from specplug.batching import BatchDecoder
from specplug.library_errors import LibraryError, is_ours, is_panic, public_text
from specplug.option_values import once
from specplug.serving import errors
from tests_support.serving import Running, serving

BUILT_AT = "/home/runner/work/llguidance/parser/src/lark/parser.rs:543:30"
PANICS = [
    f"panic: begin <= end (1 <= 0) when slicing\nat {BUILT_AT}",
    f"thread '<unnamed>' panicked at {BUILT_AT}",
    "called `Option::unwrap()` on a `None` value",
    "assertion failed: stride < max_len",
    "index out of bounds: the len is 3 but the index is 7",
    "internal error: entered unreachable code: 4",
    "range start index 1 out of range for slice of length 0",
    "it broke, at /opt/venv/lib/python3.11/site-packages/llguidance/_lib.abi3.so",
    "<Undefined object at 0x7f3c29c0aa90> has no attribute",
    'Traceback (most recent call last): File "/srv/app/x.py", line 3',
    "cannot open /srv/models/private/tokenizer.json",
    "cannot open C:\\builds\\llguidance\\x",
    "x" * 501,
]
REASONS = [
    "unclosed group",
    "Pointer '/a/b' does not exist",
    "Resource 'http://x/y/z' is not present in a registry and retrieving it failed",
    'at 1(8): invalid regex "\\\\b" (in regex): lookarounds not supported yet; in regex /\\b/',
    "unknown field `nope`, expected one of `item_separator`, `key_separator`",
    'failed to parse "%json": EOF while parsing an object at line 2 column 0',
    "Failed to generate regex for integer range: min=Some(9223372036854775807), max=None",
    "Token range end too large: 99999999",
    "'dict object' has no attribute 'name'",
    "conversation roles must alternate user/assistant/user/assistant/...",
]


@pytest.mark.parametrize("reason", PANICS)
def test_what_a_library_says_of_itself_is_reduced(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = LibraryError("regex (a", reason)
    assert str(error) == f"regex (a: {reason}", "the command line and Python have all of it"
    assert public_text(error) == "regex (a: the library that reads it failed on it"
    [line] = caplog.messages
    assert line.startswith("a library failed on a request, at ")
    assert "(a" not in line, "the log has nothing of the request"
    assert ("parser.rs:543" in line) == (BUILT_AT in reason)


@pytest.mark.parametrize("reason", REASONS)
def test_what_a_library_says_of_the_input_is_shown(reason: str) -> None:
    assert public_text(LibraryError("regex (a", reason)) == f"regex (a: {reason}"


@given(st.text(max_size=40), st.sampled_from(PANICS[:-1]), st.text(max_size=40))
def test_nothing_around_it_hides_what_is_internal(before: str, inside: str, after: str) -> None:
    public = public_text(LibraryError("x", f"{before} {inside} {after}"))
    assert public == "x: the library that reads it failed on it"


def caught(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_only_a_raise_statement_of_ours_makes_an_error_ours() -> None:
    ours = [
        lambda: SamplingParams(top_p=7.0),
        lambda: once([("a", 1), ("a", 2)]),
        lambda: json.loads('{"a": 1, "a": 2}', object_pairs_hook=once),
        lambda: specplug.NgramDrafter(prompt_lookup_min=0),
    ]
    for call in ours:
        error = caught(call)
        assert is_ours(error), error
        assert public_text(error) == str(error)

    # A frame of specplug in which compiled code, or Python's own, raises.
    names = {"__name__": "specplug.made_up", "np": np, "json": json, "tokenizers": tokenizers}
    for text in (
        "int('/srv/secret')",
        "np.zeros(2).reshape(3)",
        "json.loads('9' * 5000)",
        "tokenizers.Tokenizer.from_str('/srv/secret')",
        "'%d' % 'x'",
        "[][3]",
    ):
        code = compile(f"def call(): return {text}", "made_up", "exec")
        exec(code, names)
        error = caught(names["call"])  # type: ignore[arg-type]
        assert not is_ours(error), text
        assert public_text(error) == "it cannot be read"
    assert not is_ours(ValueError("never raised"))
    assert public_text(caught(lambda: json.loads("{"))).startswith("Expecting property name")


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tiny_bundles: dict[str, Path]) -> Iterator[Running]:
    with (
        BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=2) as decoder,
        serving(decoder) as running,
    ):
        yield running


def ask(server: Running, **fields: Any) -> tuple[int, dict[str, Any]]:
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    status, _, body = server.send("POST", path, {"max_tokens": 2} | fields)
    return status, json.loads(body)["error"]


def check(server: Running, status: int, error: dict[str, Any], expected: int) -> None:
    assert status == expected, error
    assert set(error) == {"message", "type", "param", "code"}
    text = json.dumps(error)
    for internal in ("/home", "runner", ".rs", "panic", "stride", "/srv", "unwrap", "0x7f"):
        assert internal not in text, text
    assert server.send("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200


CONSTRAINTS: list[dict[str, Any]] = [
    {"regex": "[ab]"},
    {"grammar": 'start: "a"'},
    {"json_schema": {"type": "object"}},
    {"structured_outputs": {"choice": ["a"]}},
    {"response_format": {"type": "json_object"}},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda one: next(iter(one)))
def test_a_panic_of_the_grammars_library(
    server: Running, constraint: dict[str, Any], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llguidance

    class Panics:  # as the library does: it catches them, and keeps the text
        grammar_from_json_schema = staticmethod(llguidance.LLMatcher.grammar_from_json_schema)
        grammar_from_regex = staticmethod(llguidance.LLMatcher.grammar_from_regex)
        grammar_from_lark = staticmethod(llguidance.LLMatcher.grammar_from_lark)

        def __init__(self, *arguments: object, **options: object) -> None: ...

        def is_error(self) -> bool:
            return True

        def get_error(self) -> str:
            return PANICS[0]

    monkeypatch.setattr(llguidance, "LLMatcher", Panics)
    status, error = ask(server, prompt="a", stream=stream, **constraint)
    monkeypatch.undo()
    check(server, status, error, 400)
    assert error["message"].endswith(": the library that reads it failed on it")
    assert error["param"] in (next(iter(constraint)), "structured_outputs.choice")


def test_a_grammar_that_is_wrong_is_told_as_before(server: Running) -> None:
    status, error = ask(server, prompt="a", regex="(a")
    assert (status, error["message"]) == (400, "regex (a: unclosed group")


def real_panic() -> None:
    """A panic of a library that is there: an assertion of tokenizers."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.encode("a b a b").truncate(2, stride=5)


def bare_exception() -> None:
    raise Exception(f"it broke at {BUILT_AT}")


def foreign_value_error() -> None:
    int("/srv/secret")


@pytest.mark.parametrize(
    ("fails", "status"), [(real_panic, 500), (bare_exception, 500), (foreign_value_error, 400)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_tokenizer_that_fails(
    server: Running,
    fails: Callable[[], None],
    status: int,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Backend:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def encode(self, text: str, **options: Any) -> Any:
            fails()

    tokenizer = server.service.tokenizer
    monkeypatch.setattr(tokenizer, "backend", Backend(tokenizer.backend))
    found, error = ask(server, prompt="a", stream=stream)
    monkeypatch.undo()
    check(server, found, error, status)


def test_a_panic_is_known_as_one() -> None:
    with pytest.raises(BaseException, match="stride") as panic:
        real_panic()
    assert is_panic(panic.value)
    assert not isinstance(panic.value, Exception)
    assert not any(
        map(is_panic, (ValueError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()))
    )


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (
            "{{ raise_exception('roles must alternate user/assistant/...') }}",
            "roles must alternate",
        ),
        ("{{ messages[0].nothing.more }}", "has no attribute"),
        ("{{ messages[0].content.x() }}", ""),
        ("{{ messages + 1 }}", ""),
        ("{{ cycler('a').next() + 1 }}", ""),
        ("{{ joiner | float + joiner }}", ""),
        ("{{ messages | sum }}", "sum adds numbers only"),
    ],
)
def test_a_template_that_fails(
    server: Running, source: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specplug.templates import compile_template

    monkeypatch.setattr(server.service.tokenizer, "_template", compile_template(source))
    status, error = ask(server, messages=[{"role": "user", "content": "a"}])
    monkeypatch.undo()
    check(server, status, error, 400)
    assert error["message"].startswith("the chat template refuses these messages: ")
    assert shown in error["message"]


def test_a_check_of_a_field_that_fails_in_foreign_words(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = ValidationError.from_exception_data(
        "request",
        [{"type": "value_error", "loc": ("top_k",), "input": 1,
          "ctx": {"error": caught(foreign_value_error)}}],
    )  # fmt: skip
    made = errors.from_validation(raised)
    assert (made.message, made.body["error"]["param"]) == ("top_k: it cannot be read", "top_k")
    status, error = ask(server, prompt="a", top_k=0.5)
    assert (status, error["message"].startswith("top_k")) == (400, True), "in words of pydantic's"
    status, _, body = server.send(
        "POST", "/v1/completions", b'{"prompt": "a", "seed": %s}' % (b"9" * 5000)
    )
    check(server, status, json.loads(body)["error"], 400)
    status, error = ask(server, prompt="a", logit_bias={"x": 1})
    check(server, status, error, 400)


# --- the whole kind -------------------------------------------------------------------------------

REACHED = [  # by a request, on its way to an answer
    *sorted(Path(specplug.__file__).parent.glob("serving/**/*.py")),
    *(
        Path(specplug.__file__).with_name(f"{name}.py")
        for name in (
            "grammar", "grammar_sources", "gbnf", "structural_tags", "text", "templates", "prompts",
            "template_bounds", "sampling", "sampler", "bad_words", "generation_options", "batching",
            "option_values", "context", "detokenizer", "preparation",
        )
    ),
]  # fmt: skip
VETTED = {
    ("templates.py", "compile_template"): "the operator's template, when a bundle is opened",
    ("text.py", "__init__"): "the operator's tokenizer, when a bundle is opened",
    ("text.py", "encode"): "the place of half a surrogate pair, in our words",
    ("grammar_sources.py", "_json"): "Python's words about JSON, which LibraryError vets",
    ("structural_tags.py", "as_json"): "Python's words about JSON, which LibraryError vets",
    ("option_values.py", "parsed_json"): "Python's words about JSON, for a command line",
    ("sampler.py", "call"): "of a draft, which no answer shows",
    ("bodies.py", "_read"): "BodyError, ours",
    ("bodies.py", "read_json"): "BodyError and TwiceError, ours; the parser's few fixed words",
    ("server.py", "bind"): "the operator's address",
    ("ray.py", "<module>"): "an extra that is not installed",
}


def test_no_other_place_puts_a_librarys_words_into_an_error() -> None:
    found = []
    for path in REACHED:
        for function, handler in handlers(ast.parse(path.read_text(encoding="utf-8"))):
            for node in ast.walk(handler):
                if isinstance(node, ast.Raise) and shows(node, handler.name or ""):
                    found.append((path.name, function))
    assert set(found) <= set(VETTED), set(found) - set(VETTED)


def handlers(tree: ast.Module) -> Iterator[tuple[str, ast.ExceptHandler]]:
    """Every ``except … as name``, with its function's name."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, ast.ExceptHandler]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.ExceptHandler) and node.name:
            yield function, node
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    return walk(tree, "<module>")


def shows(statement: ast.Raise, name: str) -> bool:
    """Whether the error that is raised has the text of the one that was caught, not vetted."""
    made = statement.exc
    if not isinstance(made, ast.Call) or getattr(made.func, "id", "") == "LibraryError":
        return False
    vetted = {
        id(inner)
        for call in ast.walk(made)
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", "") in ("public_text", "field_of")
        for inner in ast.walk(call)
    }
    return any(
        isinstance(node, ast.Name) and node.id == name and id(node) not in vetted
        for node in ast.walk(made)
    )

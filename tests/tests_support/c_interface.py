"""The C interface called with whatever values: ``python -m tests_support.c_interface BUNDLE``.

A process of its own, since a call that the library should have refused may end it. Calls come as a
list of JSON on standard input, and their statuses and messages leave on standard output. Structs
are read from the header, so that no field can be forgotten.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests_support.native import BUILD, ROOT

HEADER = ROOT / "engines" / "native" / "include" / "specplug" / "specplug.h"
SIZE_MAX = 2**64 - 1
PROMPT = (1, 2, 3)

_TYPES: dict[str, Any] = {
    "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "double": ctypes.c_double,
    "const char *": ctypes.c_char_p,
    "const char *const *": ctypes.POINTER(ctypes.c_char_p),
    "const int32_t *": ctypes.POINTER(ctypes.c_int32),
    "const int64_t *": ctypes.POINTER(ctypes.c_int64),
    "const double *": ctypes.POINTER(ctypes.c_double),
    "specplug_acceptance": ctypes.c_int32,
    "specplug_finish_reason": ctypes.c_int32,
    "specplug_on_run": ctypes.c_void_p,
    "void *": ctypes.c_void_p,
}
_LISTS: dict[str, tuple[str, Any]] = {
    "providers": ("provider_count", ctypes.c_char_p),
    "banned_tokens": ("banned_count", ctypes.c_int64),
    "stop_token_ids": ("stop_token_count", ctypes.c_int64),
    "stop": ("stop_count", ctypes.c_char_p),
    "prediction": ("prediction_count", ctypes.c_int64),
}
"""Lists: the field of their length, and what they are of."""
_MAPS: dict[str, tuple[str, str, str, Any]] = {
    "logit_bias": ("bias_tokens", "bias_values", "bias_count", ctypes.c_double),
    "forced_tokens": ("forced_positions", "forced_tokens", "forced_count", ctypes.c_int64),
}
_RULES = {"coupled": 0, "rejection": 1, "block": 2}
OPTIONS = ("model", "decoder", "generation")


def fields(struct: str) -> dict[str, str]:
    """The fields of a struct of the header and their types, in its order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    body = text.split(f"typedef struct {struct} {{")[1].split("}")[0]
    found = re.findall(r"^\s*(.*?[\s*])(\w+);", body, flags=re.MULTILINE)
    return {name: kind.strip() for kind, name in found}


def _struct(name: str) -> type[ctypes.Structure]:
    described = [(field, _TYPES[kind]) for field, kind in fields(name).items()]
    return type(name, (ctypes.Structure,), {"_fields_": described})


class Interface:
    """The installed library, with a model of a bundle open."""

    def __init__(self, bundle: str) -> None:
        self.library = ctypes.CDLL(str(BUILD / "install" / "lib" / "libspecplug.so"))
        self.library.specplug_error_message.restype = ctypes.c_char_p
        self._kept: list[Any] = []  # what pointers lead to
        self._structs = {name: _struct(f"specplug_{name}_options") for name in OPTIONS}
        self._bundle = bundle.encode()
        self.model = ctypes.c_void_p()
        self.decoder = ctypes.c_void_p()
        self._check(self._open(self.options("model", {}), self.model))
        self._check(self._create(self.options("decoder", {"drafter": "ngram"}), self.decoder))
        run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._end = run(lambda _data, _run: 1)  # one round is enough

    def _check(self, status: int) -> None:
        assert status == 0, self.message()

    def message(self) -> str:
        """What the latest failure was."""
        return str(self.library.specplug_error_message().decode())

    def options(self, kind: str, given: Mapping[str, Any]) -> ctypes.Structure:
        """A struct of options, by its ``_init`` function and values for fields, lists and maps."""
        made = self._structs[kind]()
        getattr(self.library, f"specplug_{kind}_options_init")(ctypes.byref(made))
        for name, value in given.items():
            if name in _LISTS and isinstance(value, list):
                count, item = _LISTS[name]
                setattr(made, name, self._array(item, value))
                setattr(made, count, len(value))
            elif name in _MAPS and isinstance(value, list):
                keys, values, count, item = _MAPS[name]
                setattr(made, keys, self._array(ctypes.c_int64, [key for key, _ in value]))
                setattr(made, values, self._array(item, [one for _, one in value]))
                setattr(made, count, len(value))
            elif name == "acceptance":
                made.acceptance = _RULES.get(value, value)
            else:
                setattr(made, name, encoded(value) if isinstance(value, str) else value)
        return made

    def _array(self, item: Any, values: Sequence[Any]) -> Any:
        made = (item * max(len(values), 1))(
            *(encoded(one) if isinstance(one, str) else one for one in values)
        )
        self._kept.append(made)
        return ctypes.cast(made, ctypes.POINTER(item))

    def _open(self, options: Any, model: ctypes.c_void_p) -> int:
        return int(
            self.library.specplug_model_open(
                self._bundle, ctypes.byref(options), ctypes.byref(model)
            )
        )

    def _create(self, options: Any, decoder: ctypes.c_void_p) -> int:
        return int(
            self.library.specplug_decoder_create(
                self.model, ctypes.byref(options), ctypes.byref(decoder)
            )
        )

    def call(self, kind: str, given: dict[str, Any]) -> int:
        """The status of a call with options; what it made is given back."""
        made = ctypes.c_void_p()
        if kind == "model":
            status = self._open(self.options(kind, given), made)
            self.library.specplug_model_close(made)
        elif kind == "decoder":
            status = self._create(self.options(kind, {"drafter": "ngram"} | given), made)
            self.library.specplug_decoder_destroy(made)
        else:
            prompt = given.pop("prompt", PROMPT)
            count = given.pop("prompt_count", len(prompt or ()))
            ids = None if prompt is None else self._array(ctypes.c_int64, prompt)
            options = self.options(kind, given)
            options.on_run = ctypes.cast(self._end, ctypes.c_void_p)
            status = int(
                self.library.specplug_generate(
                    self.decoder, ids, ctypes.c_size_t(count), ctypes.byref(options)
                )
            )
        return status

    def text(self, name: str, count: int) -> int:
        """The status of ``specplug_encode`` or ``specplug_decode`` with a count that cannot be."""
        made, size = ctypes.c_void_p(), ctypes.c_size_t()
        results = ctypes.byref(made), ctypes.byref(size)
        given: tuple[Any, ...] = (self._array(ctypes.c_int64, [1]), ctypes.c_size_t(count))
        if name == "encode":
            given = (b"a", ctypes.c_size_t(count), 1)
        call = getattr(self.library, f"specplug_{name}")
        return int(call(self.model, *given, *results))

    def within_a_callback(self, name: str) -> int:
        """The status of a call into the decoder by its own callback, after which it goes on."""
        made, size = ctypes.c_void_p(), ctypes.c_size_t()
        found: list[int] = []

        def call(_data: Any, _run: Any) -> int:
            if name == "cancel":
                self.library.specplug_decoder_cancel(self.decoder)
                found.append(0)
            elif name == "generate":
                ids = self._array(ctypes.c_int64, [1])
                found.append(self.library.specplug_generate(self.decoder, ids, 1, None))
            else:
                told = self.library.specplug_decoder_tokens
                found.append(told(self.decoder, ctypes.byref(made), ctypes.byref(size)))
            return 0

        run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(call)
        options = self.options("generation", {"max_tokens": 6, "stop_token_ids": []})
        options.on_run = ctypes.cast(run, ctypes.c_void_p)
        ids = self._array(ctypes.c_int64, PROMPT)
        self._check(self.library.specplug_generate(self.decoder, ids, 3, ctypes.byref(options)))
        read = self.library.specplug_decoder_tokens
        self._check(read(self.decoder, ctypes.byref(made), ctypes.byref(size)))
        assert (size.value < 6) == (name == "cancel"), size.value
        return found[0]

    def without_a_model(self) -> int:
        """A generation by a decoder whose model was closed."""
        made, decoder = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(self._open(self.options("model", {}), made))
        plain = ctypes.byref(self.options("decoder", {"drafter": "none"}))
        self._check(self.library.specplug_decoder_create(made, plain, ctypes.byref(decoder)))
        self.library.specplug_model_close(made)
        options = self.options("generation", {"max_tokens": 2})
        ids = self._array(ctypes.c_int64, PROMPT)
        status = self.library.specplug_generate(decoder, ids, 3, ctypes.byref(options))
        self.library.specplug_decoder_destroy(decoder)
        return int(status)

    def without_options(self) -> int:
        """Fill options that are not there."""
        for kind in OPTIONS:
            getattr(self.library, f"specplug_{kind}_options_init")(None)
        return 0


def encoded(text: str) -> bytes:
    """Text with lone surrogates for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def ask(bundle: Path, calls: Sequence[Sequence[Any]]) -> list[tuple[int, str]]:
    """Statuses and messages of calls: each a method of :class:`Interface` with its arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "tests_support.c_interface", str(bundle)],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "tests",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(calls), done.stderr[-3000:]
    return [(status, message) for status, message in map(json.loads, lines)]


def main() -> None:
    """Make the calls of standard input."""
    interface = Interface(sys.argv[1])
    for name, *arguments in json.load(sys.stdin):
        status = getattr(interface, name)(*arguments)
        print(json.dumps([status, interface.message() if status else ""]), flush=True)
    assert not math.isnan(interface.call("generation", {}))  # the decoder lives


if __name__ == "__main__":
    main()

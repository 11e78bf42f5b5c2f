"""The ``specplug`` command: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from specplug.cli import (
    bench,
    chat,
    console,
    distill,
    export,
    generate,
    inspect,
    interrupts,
    pull,
    serve,
    texts,
    tune,
    verify,
)
from specplug.cli.idle import idle_options
from specplug.types import SpecplugError

app = typer.Typer(
    name="specplug",
    help="Speculative decoding for the inference engine you already run: same text, less time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _checked(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose texts are UTF-8, and that tells of options which do nothing."""

    @functools.wraps(command)
    def called(**arguments: Any) -> None:
        arguments = texts.check_arguments(arguments)
        for line in idle_options(command, arguments):
            console.note(line)
        command(**arguments)

    return called


for _name, _command in (
    ("pull", pull.pull),
    ("export", export.export),
    ("inspect", inspect.inspect),
    ("generate", generate.generate),
    ("chat", chat.chat),
    ("serve", serve.serve),
    ("hash-key", serve.hash_key_command),
    ("verify", verify.verify),
    ("tune", tune.tune),
    ("distill", distill.distill),
    ("bench", bench.bench),
):
    app.command(name=_name)(_checked(_command))


def main() -> None:
    """Entry point: one line for an error that a user can mend, exit code 1."""
    interrupts.watch()
    texts.prepare_streams()
    try:
        app()
    except (SpecplugError, ValueError) as error:
        _end(1, str(error))
    except OSError as error:  # disk full, no permission, …
        _end(1, f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except KeyboardInterrupt:  # while the commands are built, before typer would catch it
        _end(1)
    except SystemExit as end:
        _end(end.code)


def _end(code: str | int | None, message: str | None = None) -> NoReturn:
    interrupted = interrupts.exit_code()
    if code and interrupted:
        console.note("interrupted")
        sys.exit(interrupted)
    if message:
        console.fail(message)
    sys.exit(code)


@app.callback()
def _options() -> None:
    """Present so that a single command keeps its name."""


if __name__ == "__main__":
    main()

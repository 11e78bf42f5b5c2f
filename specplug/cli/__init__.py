"""The ``specplug`` command: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from specplug.cli import chat, console, export, generate, inspect, pull, verify
from specplug.types import SpecplugError

app = typer.Typer(
    name="specplug",
    help="Speculative decoding for the inference engine you already run: same text, less time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_CANCELLED, _TERMINATED = (
    128 + signal.SIGINT,
    128 + signal.SIGTERM,
)  # exit codes, as shells have them

app.command(name="pull")(pull.pull)
app.command(name="export")(export.export)
app.command(name="inspect")(inspect.inspect)
app.command(name="generate")(generate.generate)
app.command(name="chat")(chat.chat)
app.command(name="verify")(verify.verify)


def main() -> None:
    """Entry point: one line for an error that a user can mend, exit code 1."""
    signal.signal(signal.SIGTERM, _terminate)  # so that it, too, leaves nothing half-made
    try:
        app()
    except (SpecplugError, ValueError) as error:
        console.fail(str(error))
        sys.exit(1)
    except OSError as error:  # disk full, no permission, …
        console.fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
        sys.exit(1)
    except SystemExit as end:
        if end.code in (_CANCELLED, _TERMINATED):
            console.note("interrupted")
        raise


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(_TERMINATED)


@app.callback()
def _options() -> None:
    """Present so that a single command keeps its name."""


if __name__ == "__main__":
    main()

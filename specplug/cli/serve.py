"""``specplug serve``: an HTTP server that speaks OpenAI's protocol; ``specplug hash-key``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from specplug.batching import BatchDecoder
from specplug.cli import console
from specplug.cli.console import (
    AllowNarrow,
    BundlePath,
    DraftDevice,
    DraftEngine,
    DrafterName,
    DraftTokens,
    InexactTrees,
    Sources,
    TargetDevice,
    TargetEngine,
    Threads,
)
from specplug.history import DEFAULT_TOKENS, History
from specplug.serving.hosts import address_of
from specplug.serving.keys import KeyRing, hash_key, readable_by_others
from specplug.serving.settings import ServerSettings, default_model_name, fingerprint
from specplug.text_file import read_text
from specplug.types import MissingExtraError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHORT = 16  # characters; shorter keys can be guessed from their hashes
_DEFAULT = ServerSettings()


def serve(
    bundle: BundlePath,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Others than this machine's own see it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    model_name: Annotated[
        str | None,
        typer.Option("--model-name", help="What clients call the model. Default: the folder's."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", help="Who may ask: lines of name:hash, made by specplug hash-key."
        ),
    ] = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, max=256, help="Answers made at a time.")
    ] = 8,
    prefix_cache: Annotated[
        int,
        typer.Option(
            "--prefix-cache", metavar="MB", min=0, help="Memory for prompts that may come again."
        ),
    ] = 1024,
    history_tokens: Annotated[
        int,
        typer.Option(
            "--history-tokens",
            min=0,
            help="Tokens of earlier requests that drafts may come from, a kilobyte each.",
        ),
    ] = DEFAULT_TOKENS,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=0, help="Answers that may wait; more get 429.")
    ] = _DEFAULT.max_waiting,
    max_per_key: Annotated[
        int | None,
        typer.Option(
            "--max-per-key",
            min=1,
            help="Answers of a key, running and waiting. Default: half of all, with keys.",
        ),
    ] = None,
    max_choices: Annotated[
        int, typer.Option("--max-choices", min=1, help="Answers of one request: prompts times n.")
    ] = _DEFAULT.max_choices,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="New tokens of one answer.")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option("--max-prompt-tokens", min=1, help="Tokens of one prompt.")
    ] = None,
    max_connections: Annotated[
        int, typer.Option("--max-connections", min=1, help="Open connections at a time.")
    ] = _DEFAULT.max_connections,
    header_timeout: Annotated[
        float,
        typer.Option("--header-timeout", metavar="SECONDS", help="For a request's head to arrive."),
    ] = _DEFAULT.header_timeout,
    idle_timeout: Annotated[
        float,
        typer.Option(
            "--idle-timeout", metavar="SECONDS", help="Between two requests of a connection."
        ),
    ] = _DEFAULT.idle_timeout,
    max_body: Annotated[
        int, typer.Option("--max-body", metavar="BYTES", min=1, help="Of one request.")
    ] = _DEFAULT.max_body_bytes,
    max_held: Annotated[
        int,
        typer.Option(
            "--max-held", metavar="BYTES", min=1, help="Of all requests that are being answered."
        ),
    ] = _DEFAULT.max_held_bytes,
    request_timeout: Annotated[
        float,
        typer.Option("--request-timeout", metavar="SECONDS", help="For a request's last token."),
    ] = _DEFAULT.request_timeout,
    send_timeout: Annotated[
        float,
        typer.Option(
            "--send-timeout", metavar="SECONDS", help="For a reader to take what it is sent."
        ),
    ] = _DEFAULT.send_timeout,
    keep_alive_comment: Annotated[
        float,
        typer.Option(
            "--keep-alive-comment",
            metavar="SECONDS",
            help="Of a stream's silence; then a comment.",
        ),
    ] = _DEFAULT.keep_alive_comment,
    step_timeout: Annotated[
        float,
        typer.Option(
            "--step-timeout", metavar="SECONDS", help="For a step of the engine; then 503."
        ),
    ] = _DEFAULT.step_timeout,
    shutdown_timeout: Annotated[
        float,
        typer.Option(
            "--shutdown-timeout", metavar="SECONDS", help="For answers to end after SIGTERM."
        ),
    ] = _DEFAULT.shutdown_timeout,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="A web origin whose pages may ask; repeatable."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            help="A name that clients call this machine, beside localhost; repeatable; *: any.",
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts and answers into the log.")
    ] = False,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            "--otlp-endpoint",
            metavar="URL",
            help="Send OpenTelemetry traces there (extra tracing). Default: as OTEL_* variables "
            "say, else nowhere.",
        ),
    ] = None,
    drafter: DrafterName = "auto",
    draft_tokens: DraftTokens = "auto",
    target_engine: TargetEngine = None,
    target_device: TargetDevice = None,
    draft_engine: DraftEngine = None,
    draft_device: DraftDevice = None,
    source: Sources = None,
    threads: Threads = None,
    allow_narrow: AllowNarrow = False,
    inexact_trees: InexactTrees = False,
) -> None:
    """Answer requests of OpenAI's protocol at /v1/; see docs/SERVING.md.

    The log is one JSON object a line on standard error; the address is the one line on standard
    output.
    """
    try:
        from specplug.serving import logs, server
        from specplug.serving.app import create_app
    except ImportError as error:
        raise MissingExtraError(
            f"serving needs {error.name}: pip install 'specplug[serve]'"
        ) from None
    keys = _keys(api_key_file)
    settings = _settings(
        model_name=model_name or default_model_name(bundle),
        fingerprint=fingerprint(bundle),
        keys=keys,
        max_waiting=max_waiting,
        max_per_key=max_per_key,
        max_choices=max_choices,
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        max_connections=max_connections,
        header_timeout=header_timeout,
        idle_timeout=idle_timeout,
        max_body_bytes=max_body,
        max_held_bytes=max_held,
        request_timeout=request_timeout,
        send_timeout=send_timeout,
        keep_alive_comment=keep_alive_comment,
        step_timeout=step_timeout,
        shutdown_timeout=shutdown_timeout,
        cors_origins=tuple(cors_origin or ()),
        allowed_hosts=_allowed_hosts(allowed_host or [], host, keys),
        log_prompts=log_prompts,
        otlp_endpoint=otlp_endpoint,
    )
    if host not in _LOOPBACK and settings.keys is None:
        console.note(f"--host {host} without --api-key-file: whoever reaches it may ask")
    with (
        server.bind(host, port, send_timeout) as listener,
        console.open_decoder(
            BatchDecoder,
            bundle,
            max_batch=max_batch,
            prefix_cache_bytes=prefix_cache << 20,
            history=History(history_tokens),
            drafter=drafter,
            draft_tokens=console.draft_tokens(draft_tokens),
            target_engine=target_engine,
            target_device=target_device,
            draft_engine=draft_engine,
            draft_device=draft_device,
            sources=source,
            threads=threads,
            allow_narrow=allow_narrow,
            inexact_trees=inexact_trees,
        ) as decoder,
    ):
        logs.set_up()
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        app = create_app(settings, decoder)
        started = partial(print, address, flush=True)
        server.Server(app, started, owns_process=True).run(sockets=[listener])


def hash_key_command(
    name: Annotated[str, typer.Argument(help="Whose key it is: what logs and limits go by.")],
) -> None:
    """Read an API key from standard input; print its line for --api-key-file."""
    key = sys.stdin.readline().strip()
    if len(key) < _SHORT:
        raise ValueError(
            f"a key of {len(key)} characters can be guessed: need at least {_SHORT}, such as "
            "openssl rand -hex 24 gives"
        )
    line = f"{name}:{hash_key(key)}"
    KeyRing.parse(line, "the name")
    print(line)


_OPTIONS = {
    "max_body_bytes": "--max-body",
    "max_held_bytes": "--max-held",
    "cors_origins": "--cors-origin",
    "allowed_hosts": "--allowed-host",
}
"""Of settings whose options are called otherwise."""


def _settings(**values: Any) -> ServerSettings:
    """The settings; what is wrong with one is said of its option."""
    try:
        return ServerSettings(**values)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        if name not in values:
            raise
        option = _OPTIONS.get(name, "--" + name.replace("_", "-"))
        raise ValueError(f"{option} {rest}") from None


def _allowed_hosts(given: list[str], host: str, keys: KeyRing | None) -> tuple[str, ...]:
    """The names that are answered to; also the one to listen at, which is in the address."""
    if host in given or address_of(host) is not None or (keys is not None and not given):
        return tuple(given)
    return (*given, host)


def _keys(path: Path | None) -> KeyRing | None:
    if path is None:
        return None
    if readable_by_others(path):
        console.note(f"{path} can be read by others: chmod 600 {path}")
    return KeyRing.parse(read_text(path, "--api-key-file"), str(path))

"""Chat templates of checkpoints: whether a template can be used."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2.exceptions import SecurityError

from specplug.templates import RefusedMessagesError, compile_template, render_template
from specplug.types import ExportError

_REMEDY = "mend the template in the source, or remove it there (the bundle then takes plain text)"


def check_template(source: str, special_tokens: Mapping[str, str]) -> None:
    """Refuse a chat template that does not parse, or that does what is not allowed.

    A template that refuses a conversation by its own rules is none of our business.

    Raises:
        ExportError: saying what is wrong, and the remedy.
    """
    try:
        template = compile_template(source)
    except ValueError as error:
        raise ExportError(f"{error}: {_REMEDY}") from error
    messages = [{"role": "user", "content": "Hello"}]
    try:
        render_template(template, messages, {"add_generation_prompt": True, **special_tokens})
    except ValueError as error:
        cause = error.__cause__
        forbidden = isinstance(cause, SecurityError | ValueError)
        if forbidden and not isinstance(cause, RefusedMessagesError):
            raise ExportError(f"the chat template cannot be used: {cause}: {_REMEDY}") from error

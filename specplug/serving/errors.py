"""What goes wrong, in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from specplug.arguments import shown
from specplug.library_errors import public_text
from specplug.serving.fields import UNKNOWN, UNSUPPORTED

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_OUTCOMES = {500: "failed", 504: "timeout"}
_CODES = {
    400: "invalid_value",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "unavailable",
    504: "timeout",
}


_LONGEST = 500  # characters of a message
_LONGEST_NAME = 64  # characters of a field's name


class ErrorDetail(BaseModel):
    """What was wrong, and with which field."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every answer whose status is not 200."""

    error: ErrorDetail


class ApiError(Exception):
    """Ends a request; not an exception of the framework's, which would not let a stream end so.

    Args:
        status: of HTTP.
        message: for the person who wrote the request; nothing internal.
        param: the field that is wrong, such as ``"messages.0.role"``.
        code: for programs; None: what belongs to the status.
        retry_after: seconds after which it may go better.
        outcome: for the log; None: what belongs to the status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        outcome: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= _LONGEST else f"{message[: _LONGEST - 3]}..."
        self.param = param
        self.code = code or _CODES.get(status)
        self.outcome = outcome or _OUTCOMES.get(status, "refused")
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}

    @property
    def body(self) -> dict[str, Any]:
        """As it is sent, also within a stream."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def internal_error(request_id: str) -> ApiError:
    """Of what should not have happened; the log has the reason under this id."""
    return ApiError(500, f"the server failed; its log tells why under request {request_id}")


def from_http(error: HTTPException) -> ApiError:
    """What the framework raised: 404, 405, a body that cannot be read."""
    if error.status_code == 400:  # bytes that are no text, brackets without end
        return ApiError(400, "the body is not JSON", code="invalid_json")
    made = ApiError(error.status_code, str(error.detail))
    made.headers = dict(error.headers or {})
    return made


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body, status 400."""
    found = error.errors(include_url=False, include_input=False)
    first = max(found, key=lambda one: len(_place(one)))  # of alternatives, the one meant
    param = _param(_place(first))
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing", param=param, code="missing_required_parameter")
    if "field" in first.get("ctx", {}):  # the whole object is wrong because of this field of it
        code = first["type"] if first["type"] in (UNKNOWN, UNSUPPORTED) else None
        why = _words(first)
        named = why.startswith(first["ctx"]["field"])
        return ApiError(400, why if named else f"{param}: {why}", param=param, code=code)
    return ApiError(400, f"{param or 'body'}: {_words(first)}", param=param)


def _words(error: Mapping[str, Any]) -> str:
    """The framework's fixed words; what a check of a field raised is shown only if it is ours."""
    about = error.get("ctx", {})
    if error["type"] == "union_tag_invalid":  # whose words have all of what was sent
        return f"{shown(about['tag'])}: need one of {about['expected_tags']}"
    raised = about.get("error")
    return public_text(raised) if isinstance(raised, Exception) else str(error["msg"])


def _place(error: Mapping[str, Any]) -> tuple[int | str, ...]:
    """Where an error is, the field included that an object's own check found wrong."""
    place: tuple[int | str, ...] = error["loc"]
    named = error.get("ctx", {}).get("field")
    return place if named is None else (*place, named)


def _param(location: Sequence[int | str]) -> str | None:
    """A field's name, without pydantic's marks of keys and of a union's alternatives."""
    parts = [
        str(part)[:_LONGEST_NAME]
        for before, part in zip((None, *location), location, strict=False)
        if not str(part).startswith(("(", "[")) and before != "response_format"
    ]
    return ".".join(parts) or None

"""JSON bodies, bounded before they are parsed, and read once, off the event loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NoReturn

import numpy as np
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from specplug.option_values import TwiceError, once
from specplug.serving.errors import ApiError, from_validation

MOST_PARTS = 150_000
"""Values of a body, about: its commas, and twice its lists and objects, outside of texts. A prompt
of 131,072 token ids fits."""
MOST_DEPTH = 256
"""Lists and objects within one another."""

_LONG = 1 << 14  # bytes: what is shorter takes two milliseconds at most

_KINDS = np.zeros(256, np.int8)  # 1 opens, -1 closes, 2 separates, by byte
_KINDS[list(b"[{")], _KINDS[list(b"]}")], _KINDS[ord(",")] = 1, -1, 2


class BodyError(ValueError):
    """A body is no JSON that is read here; the message says why."""


def read_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        BodyError: it is no JSON in UTF-8, has too many parts, is nested too deeply, or an object
            has a field twice.
    """
    _check_size(body)
    try:
        text = body.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=once, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        why = f"the body is not JSON: byte {error.start} is not UTF-8"
    except json.JSONDecodeError as error:
        why = f"the body is not JSON: {error.msg} at {error.pos}"
    except RecursionError:
        why = f"the body is nested too deeply: {MOST_DEPTH} lists and objects at most"
    except (BodyError, TwiceError) as error:
        why = str(error)
    except ValueError:
        why = "the body has a number of too many digits"
    raise BodyError(why)


def _check_size(body: bytes) -> None:
    """Bound what parsing makes of a body: arrays take a millisecond or two a MiB, objects 100."""
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")  # no quote is escaped any more
    read = np.frombuffer(plain, np.uint8)
    within = np.bitwise_xor.accumulate((read == ord('"')).view(np.uint8))
    kinds = _KINDS[read] * (within ^ 1).view(np.int8)
    kinds = kinds[kinds != 0]
    parts = len(kinds)
    if parts > MOST_PARTS:
        raise BodyError(
            f"the body has {parts} values, lists and objects: {MOST_PARTS} at most are read; "
            "send long prompts as text, or several requests"
        )
    depths = np.cumsum(kinds[kinds < 2], dtype=np.int32)
    if depths.max(initial=0) > MOST_DEPTH:
        raise BodyError(
            f"the body is nested {depths.max()} deep: {MOST_DEPTH} lists and objects at most"
        )


def _no_constant(name: str) -> NoReturn:
    raise BodyError(f"the body is not JSON: there is no {name} in it")


def _read(model: type[BaseModel], body: bytes) -> BaseModel:
    """A request.

    Raises:
        ApiError: status 400: the first thing that is wrong with it.
    """
    if not body:
        raise ApiError(400, "the body is empty: send a JSON object", code="invalid_json")
    try:
        return model.model_validate(read_json(body))
    except BodyError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    except ValidationError as error:
        raise from_validation(error) from None


class StrictRoute(APIRoute):
    """An address whose body is read and checked once, and on a thread where it is long."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI calls this for what answers a request."""
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer
        model: Any = self.body_field.field_info.annotation

        async def checked(request: Request) -> Response:
            make = partial(_read, model, body := await request.body())
            if len(body) > _LONG:
                owner = request.state.record.key or ""
                request._json = await request.app.state.service.read(owner, make)
            else:
                request._json = make()
            # The framework takes that for the body's JSON, and a model of its own for valid.
            return await answer(request)

        return checked

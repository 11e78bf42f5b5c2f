"""JSON bodies, in which a field that is there twice is an error: which of the two is meant?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from specplug.serving.errors import ApiError

_LONGEST_NAME = 64  # of a field that is named in an error


class TwiceError(ValueError):
    """An object has a field twice.

    Args:
        name: the field's.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"the field {name[:_LONGEST_NAME]!r} is there twice")


def read_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        TwiceError: an object has a field twice.
        ValueError, RecursionError: the body is not JSON.
    """
    return json.loads(body, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise TwiceError(max(counts, key=lambda name: counts[name]))
    return made


class StrictRoute(APIRoute):
    """An address whose body has each field once."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI calls this for what answers a request."""
        answer = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if self.body_field is not None:
                try:
                    read_json(await request.body())
                except TwiceError as error:
                    raise ApiError(400, str(error), code="invalid_json") from None
                except (ValueError, RecursionError):
                    pass  # FastAPI says where
            return await answer(request)

        return checked

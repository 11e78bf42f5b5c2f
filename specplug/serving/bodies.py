"""JSON bodies, in which a field that is there twice is an error: which of the two is meant?"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from specplug.option_values import TwiceError, once
from specplug.serving.errors import ApiError


def read_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        TwiceError: an object has a field twice.
        ValueError, RecursionError: the body is not JSON.
    """
    return json.loads(body, object_pairs_hook=once)


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

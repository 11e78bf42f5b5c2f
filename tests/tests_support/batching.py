"""A batch run to its end."""

from __future__ import annotations

from specplug import BatchDecoder, Token
from specplug.generation import Generation


def drain(decoder: BatchDecoder) -> dict[Generation, list[Token]]:
    """Step until nothing is left; every generation is reported, and ends once."""
    found: dict[Generation, list[Token]] = {}
    ended = set()
    while not decoder.idle:
        for generation, tokens in decoder.step():
            assert generation not in ended
            found.setdefault(generation, []).extend(tokens)
            if generation.finish_reason is not None:
                ended.add(generation)
    assert ended == set(found)
    return found


def ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]

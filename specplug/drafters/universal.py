"""A draft model with another tokenizer than the target's (arXiv:2502.05202).

It reads the context's text in tokens of its own. What it says becomes tokens of the target in one
of two ways:

- *token-level intersection*: the draft's distribution over the tokens that both have, made one
  again. It is a distribution over the target's vocabulary, so every rule of acceptance holds.
- *re-encoding*: the draft writes text ahead, its likeliest token each time, and the target's
  tokenizer cuts it. That depends on the context alone and nothing is drawn, so under rejection
  sampling a guess counts as drawn from a point mass, which is exact.

Either way a wrong translation costs time and changes no text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Self

import numpy as np

from specplug.bundle import TranslationName
from specplug.drafters.model import SHARES, ModelSource, Place
from specplug.drafters.source import SMOOTHING, Guess
from specplug.feeding import feed
from specplug.sampling import check_numbers
from specplug.spelling import unfinished
from specplug.translation import Reader, Translation
from specplug.types import Engine, Float32Array, Int64Array, Outcome, Request, Scores

_MOST_STEPS = 8  # of the draft, for one token of the target
_NEAR = 8  # tokens of the context that are cut together with what follows
_SURE = 4  # tokens of an unfinished word from which on its first one is taken for final
_LOST = -1


class TranslatingSource(ModelSource):
    """What both ways have in common: the draft reads the context in tokens of its own.

    As with :class:`ModelSource` rejected drafts need no undoing: the next call names the length up
    to which cache and text agree.

    Args:
        engine: the draft model.
        translation: between the target's tokens and its own.
        row: of the cache.
    """

    name = "universal"

    def __init__(self, engine: Engine, translation: Translation, row: int = 0) -> None:
        super().__init__(engine, row)
        self.translation = translation
        self._forget()

    def _forget(self) -> None:
        self._reader = Reader(self.translation)
        self._read = 0  # tokens of the target's context
        self._entries: list[int] = []  # the tokens that the cache holds
        self._sure = 0  # of these, how many are settled

    def begin(self, context: Int64Array) -> Place:
        """Right after the context."""
        started = time.perf_counter()
        new = context[self._read :].tolist()
        if new:
            self._reader.read(new)
        self._context, self._read = context, len(context)
        self.reading_seconds = time.perf_counter() - started if len(new) > _NEAR else 0.0
        return ()

    def _scores(self, tokens: Sequence[int], kept: int) -> tuple[Scores, int] | None:
        """The draft's scores after its tokens, and how many a call took; None: out of its reach.

        Args:
            tokens: from the beginning of the text on.
            kept: how many of them the cache is known to hold.
        """
        most = min(len(self._entries), len(tokens) - 1)  # the last token is always fed
        past = min(kept, most)
        while past < most and self._entries[past] == tokens[past]:
            past += 1
        pending, spec = tokens[past:], self.engine.spec
        if not tokens or max(pending) >= spec.vocab_size or len(tokens) > spec.context_limit:
            return None
        scores = feed(self.engine, pending, past=past, scored=1, row=self._slot.row)
        self._entries[past:] = pending
        return scores, len(pending)

    def _spelt(self, place: Place) -> bytes:
        """The text of drafted tokens, as the draft reads it."""
        return b"".join(map(self.translation.for_draft, place))

    def commit(self, outcome: Outcome) -> None:
        """What was accepted is compared with the cache when it is next read."""

    def fork(self) -> Self:
        """Over another row of the cache; see :meth:`ModelSource.fork`."""
        return type(self)(self.engine, self.translation, self._next_row())

    def reset(self, request: Request) -> None:
        """The next context is of a new sequence."""
        super().reset(request)
        self._forget()


class IntersectionSource(TranslatingSource):
    """Token-level intersection: one call of the draft a guess."""

    def __init__(self, engine: Engine, translation: Translation, row: int = 0) -> None:
        super().__init__(engine, translation, row)
        self._ours, self._theirs = translation.shared
        self._shared = translation.counterparts

    def guesses(self, place: Place) -> list[Guess]:
        """One guess; none where the draft's context ends, or no token may follow that both have."""
        started = time.perf_counter()
        tokens = self._reader.open()
        path = [self._shared.get(token, -1) for token in place]
        if -1 in path:  # another source's token, that the draft has not
            path, tokens = [], self._reader.open(self._spelt(place))
        if tokens is None:
            return []
        settled = self._reader.settled
        found = self._scores([*settled, *tokens, *path], self._sure)
        if found is None:
            return []
        self._sure = len(settled)
        logits = found[0].logits()[0, 0]
        row = logits[self._theirs]
        chosen = self._sampler.drafts(row, self._context, place, most=1, ids=self._ours)
        if not chosen:
            return []
        token, drawn_from = chosen[0]
        kind = int(SHARES * _chance(logits, self._shared[token]))
        self._timed(time.perf_counter() - started, found[1])
        return [Guess(token, kind, drawn_from)]


@dataclass(slots=True)
class _Run:
    """What the draft wrote after some text."""

    start: int
    """Where ``text`` begins in the context's."""
    before: int
    """Bytes of ``text`` that it wrote after."""
    text: bytes
    tokens: list[int]
    """All of the draft's, from the beginning of the context on."""
    ends: list[int] = field(default_factory=list)
    """In ``text``, of each token that was written."""
    chances: list[float] = field(default_factory=list)
    """Theirs, by the draft."""
    ended: bool = False
    """Whether nothing follows."""

    def goes_on_from(self, said: bytes) -> bool:
        """Whether a text after ``start`` is the beginning of what was written."""
        return len(said) >= self.before and self.text.startswith(said)


class ReencodingSource(TranslatingSource):
    """Re-encoding: a token of the target is guessed once the draft has written past it.

    What it wrote further stays, until the text turns out otherwise.
    """

    def _forget(self) -> None:
        super()._forget()
        self._run: _Run | None = None
        self._calls = 1.0  # of the draft for a guess, of late: that depends on the text

    @property
    def seconds(self) -> float:
        """Of a guess: the time of a call, which is measured over all texts, times this text's."""
        return super().seconds * self._calls

    def guesses(self, place: Place) -> list[Guess]:
        """One guess; none where the draft's context ends, or its text does not translate."""
        started = time.perf_counter()
        run, path = self._run, self._spelt(place)
        said = b"" if run is None else bytes(self._reader.text[run.start :]) + path
        if run is None or not run.goes_on_from(said):
            tokens = self._reader.open(path)
            if tokens is None:
                return []
            said, settled = path, self._reader.settled
            run = _Run(len(self._reader.text), len(path), path, [*settled, *tokens])
            self._run = run
        near, width, calls = self._near(place), 0, 0
        for _ in range(_MOST_STEPS):
            token = self._next(near, run.text[len(said) :], run.ended)
            if token is not None:
                break
            width, calls = max(width, self._write(run)), calls + 1
        self._calls += SMOOTHING * (calls - self._calls)
        if calls:
            self._timed((time.perf_counter() - started) / calls, width)
        if token is None or token == _LOST:
            return []
        spelt = self.translation.target[token] or b""
        ends = len(said), len(said) + len(spelt)
        chance = 1.0
        for end, begin, its in zip(run.ends, [run.before, *run.ends], run.chances, strict=False):
            if begin < ends[1] and end > ends[0]:
                chance *= its
        return [Guess(token, int(SHARES * chance))]

    def _near(self, place: Place) -> bytes:
        """The last tokens before a place, from a whole character on, as the target spells them."""
        tokens = [*self._context[-_NEAR:].tolist(), *place][-_NEAR:]
        text = b"".join(self.translation.target[token] or b"" for token in tokens)
        return text.lstrip(_CONTINUING)

    def _next(self, near: bytes, written: bytes, ended: bool) -> int | None:
        """The target's next token of a text; None: what may follow the text could change it.

        Args:
            near: what comes before it, by whole tokens.
            written: the text.
            ended: nothing follows it.
        """
        target, text = self.translation.target, near + written
        tokens, words = target.encode_words(text)
        sizes = [len(target[token] or b"") for token in tokens]
        surplus = sum(sizes) + unfinished(text) - len(text)  # a space that it puts before
        ends = [*accumulate(sizes, initial=-surplus)]
        if len(near) in ends:
            first = ends.index(len(near))
        else:  # the tokenizer would have cut the text before otherwise than the target did
            tokens, words = target.encode_words(written)
            first = 0
        if first == len(tokens):
            return _LOST if ended else None
        token = tokens[first]
        spelt = target[token]
        if not spelt or not written.startswith(spelt):
            return _LOST
        later = range(first + 1, len(tokens))
        final = len(later) >= _SURE - 1 or any(
            words[at] != words[first] or (target[tokens[at]] or b"").startswith(b" ")
            for at in later
        )
        return token if ended or final or target.is_special(token) else None

    def _write(self, run: _Run) -> int:
        """Have the draft write one token more; the width of its call."""
        begins = not run.ends
        found = self._scores(run.tokens, self._sure if begins else len(run.tokens) - 1)
        if found is None:
            run.ended = True
            return 0
        if begins:
            self._sure = len(self._reader.settled)
        scores, width = found
        logits = scores.logits()[0, 0]
        check_numbers(logits)
        token = int(scores.argmax()[0, 0])
        text = self.translation.for_target(token)
        if text is not None:
            run.tokens.append(token)
            run.text += text
            run.ends.append(len(run.text))
            run.chances.append(_chance(logits, token))
        run.ended = text is None or token in self.translation.draft.stops
        return width


WAYS: dict[TranslationName, type[TranslatingSource]] = {
    "intersection": IntersectionSource,
    "reencoding": ReencodingSource,
}
"""By what the manifest calls them."""

_CONTINUING = bytes(range(0x80, 0xC0))  # what follows the first byte of a character


def _chance(logits: Float32Array, token: int) -> float:
    """Of a token, by the draft."""
    weights = np.exp(logits - logits.max())
    return float(weights[token] / weights.sum())

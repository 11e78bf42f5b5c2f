"""Structured output: which tokens may come next so that the answer fits a schema or an expression.

The grammar engine is llguidance (MIT, Rust): it needs numpy alone, reads ``tokenizer.json`` as it
is, finds a mask in microseconds, and takes tokens back, which drafts need. (xgrammar's Python
package brings torch, transformers and triton into a service that may have none of them.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specplug.grammar_sources import compile_grammar, one_line
from specplug.library_errors import LibraryError
from specplug.sampling import NothingLeftError
from specplug.types import Int64Array, MissingExtraError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from specplug.sampling import SamplingParams
    from specplug.text import Tokenizer


STEP_ITEMS = 20_000
"""Earley items that one mask may take: about 20 ms, which all rows of a batch wait for."""
STEP_FUEL = 100_000
"""Lexer fuel that one mask may take: about 10 ms."""
MOST_STATES = 50_000
"""States that a grammar's lexer may come to have, of about 2 kB each."""

TOKEN_SECONDS = 0.01
"""Of CPU that a token or a mask may take, on average; real grammars take a tenth."""
MOST_SECONDS = 0.15
"""Of CPU that it may take at most, after tokens that took less."""


class GrammarLimitError(NothingLeftError):
    """A grammar cannot be followed any further: it is wrong there, or too slow for one step."""


class _Allowance:
    """CPU time that the answers to a request may still spend on their grammar, all together.

    The library's limits count what is in a row of the parser, and not how often it is come to:
    where a text can be read in many ways, a token took 2 s, while all other answers waited.
    """

    def __init__(self) -> None:
        self._left = MOST_SECONDS

    def spend(self, seconds: float) -> None:
        """Pay for a token or a mask.

        Raises:
            GrammarLimitError: there is not enough left, now and from now on.
        """
        if self._left >= 0.0:
            self._left = min(self._left + TOKEN_SECONDS, MOST_SECONDS) - seconds
        if self._left < 0.0:
            raise GrammarLimitError(
                f"the grammar cannot be followed: it takes more than {TOKEN_SECONDS * 1000:g} ms a "
                "token: make it smaller, or such that a text can be read in fewer ways"
            )


class CompiledGrammar:
    """A compiled schema, expression or grammar, which any number of answers may follow.

    Args:
        params: with one of :data:`specplug.sampling.FORMS`.
        tokenizer: of the target.
        vocab_size: V of the target.
        stop_token_ids: what ends an answer: allowed where the grammar is satisfied; one that is
            not the tokenizer's own also where the grammar takes its text, and cuts the answer there
            as a stop string does.
        rehearse: called with the grammar as the library takes it, before it is compiled.

    Raises:
        ValueError: the schema, expression or grammar is wrong, too large, uses what the library
            does not know, or cannot be satisfied.
        MissingExtraError: llguidance is not installed.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        stop_token_ids: Sequence[int],
        rehearse: Callable[[str], None] | None = None,
    ) -> None:
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError:
            raise MissingExtraError(
                "structured output needs llguidance: pip install 'specplug[structured]'"
            ) from None
        if tokenizer is None or not stop_token_ids:
            raise ValueError(
                "structured output needs a tokenizer and a token that ends the answer: this "
                "decoder has " + ("no tokenizer" if tokenizer is None else "no stop token")
            )
        self.vocab_size = vocab_size
        self.allowance = _Allowance()
        compiled, shown = compile_grammar(params, tokenizer)
        if rehearse is not None:
            try:
                rehearse(compiled)
            except ValueError as error:
                raise LibraryError(shown, str(error)) from None
        # The library is told of the tokenizer's own stop tokens, so that it is set up once, and not
        # for each set of them that a request asks for.
        known = sorted(tokenizer.stop_token_ids) or sorted(stop_token_ids)
        tokens = tokenizer.for_grammars(vocab_size, tuple(known))
        self.unknown_ends = sorted({*stop_token_ids} - {*known})
        """Tokens that end an answer and that the library does not know as such."""
        self.no_ends = sorted({*known} - {*stop_token_ids})
        """Tokens that the library takes for an answer's end and that are none."""
        limits = LLParserLimits(**LIMITS)
        self._matcher = LLMatcher(tokens, compiled, log_level=0, limits=limits)
        if self._matcher.is_error():
            raise LibraryError(shown, reason(self._matcher))
        self._matcher.compute_bitmask()
        if self._matcher.is_error():
            why = reason(self._matcher)
            if "too many items" in why.lower() or "fuel" in why or "states" in why:
                raise LibraryError(shown, why)
            raise ValueError(f"{shown}: nothing satisfies it")

    def begin(self) -> LLMatcher:
        """A matcher at the beginning of an answer; takes microseconds."""
        return self._matcher.deep_copy()


LIMITS: dict[str, int] = {
    "step_max_items": STEP_ITEMS,
    "step_lexer_fuel": STEP_FUEL,
    "max_lexer_states": MOST_STATES,
}
"""The library's limits that are not its own, by the names of ``llguidance.LLParserLimits``."""


_NOTHING: Int64Array = np.empty(0, dtype=np.int64)


class Grammar:
    """A compiled grammar and the tokens of one answer that it has read.

    Args:
        compiled: of the request.
    """

    def __init__(self, compiled: CompiledGrammar) -> None:
        self._compiled = compiled
        self._vocab_size = compiled.vocab_size
        self._matcher = compiled.begin()
        self._read = _NOTHING  # of the answer, what the matcher has consumed

    def allowed(self, answer: Int64Array) -> NDArray[np.bool_] | None:
        """Which tokens may follow an answer's tokens i64[n], bool[V].

        None: the answer itself does not fit, as with a wrong draft; no token after it counts.
        """
        shared = min(len(self._read), len(answer))
        others = np.flatnonzero(self._read[:shared] != answer[:shared])
        kept = int(others[0]) if len(others) else shared
        if kept < len(self._read):
            self._matcher.rollback(len(self._read) - kept)
        more = answer[kept:].tolist()
        taken = self._consume(more)
        self._read = answer[: kept + taken].copy()
        if self._matcher.is_error():
            raise self._failure()
        if taken < len(more):
            return None
        return self._mask()

    def _consume(self, tokens: list[int]) -> int:
        """How many of them the matcher takes; one a call, since calls cannot be interrupted."""
        for taken, token in enumerate(tokens):
            began = time.thread_time()
            if not self._matcher.try_consume_tokens([token]):
                return taken
            self._pay(began)
        return len(tokens)

    def _pay(self, began: float) -> None:
        try:
            self._compiled.allowance.spend(time.thread_time() - began)
        except GrammarLimitError:
            self._begin_again()
            raise

    def _begin_again(self) -> None:
        self._matcher, self._read = self._compiled.begin(), _NOTHING

    def _mask(self) -> NDArray[np.bool_]:
        began = time.thread_time()
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._pay(began)
        if self._matcher.is_error():
            raise self._failure()
        bits = np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(np.bool_)
        bits[self._compiled.no_ends] = False
        bits[self._compiled.unknown_ends] |= self._matcher.is_accepting()
        return bits

    def _failure(self) -> GrammarLimitError:
        """Why the matcher cannot go on. Errors stay with it, and it may have read drafts that are
        not accepted: another one takes its place.
        """
        why = LibraryError("the grammar cannot be followed", reason(self._matcher)).public
        self._begin_again()
        return GrammarLimitError(why)


def reason(matcher: LLMatcher) -> str:
    """What the library says is wrong, in one line."""
    return one_line(str(matcher.get_error()).split("<state>")[0].strip())

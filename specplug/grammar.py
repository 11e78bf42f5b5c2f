"""Structured output: which tokens may come next so that the answer fits a schema or an expression.

The grammar engine is llguidance (MIT, Rust): it needs numpy alone, reads ``tokenizer.json`` as it
is, finds a mask in microseconds, and takes tokens back, which drafts need. (xgrammar's Python
package brings torch, transformers and triton into a service that may have none of them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specplug.grammar_sources import compile_grammar, one_line
from specplug.library_errors import LibraryError
from specplug.types import Int64Array, MissingExtraError

if TYPE_CHECKING:
    from specplug.sampling import SamplingParams
    from specplug.text import Tokenizer


class Grammar:
    """A compiled schema, expression or grammar, and the tokens of an answer that it has read.

    Args:
        params: with one of :data:`specplug.sampling.FORMS`.
        tokenizer: of the target.
        vocab_size: V of the target.
        stop_token_ids: what ends an answer: allowed where the grammar is satisfied; one that is
            not the tokenizer's own also where the grammar takes its text, and cuts the answer there
            as a stop string does.

    Raises:
        ValueError: the schema, expression or grammar is wrong, uses what the library does not know,
            or cannot be satisfied.
        MissingExtraError: llguidance is not installed.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        stop_token_ids: Sequence[int],
    ) -> None:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise MissingExtraError(
                "structured output needs llguidance: pip install 'specplug[structured]'"
            ) from None
        if tokenizer is None or not stop_token_ids:
            raise ValueError(
                "structured output needs a tokenizer and a token that ends the answer: this "
                "decoder has " + ("no tokenizer" if tokenizer is None else "no stop token")
            )
        self._vocab_size = vocab_size
        compiled, shown = compile_grammar(params, tokenizer)
        # The library is told of the tokenizer's own stop tokens, so that it is set up once, and not
        # for each set of them that a request asks for.
        known = sorted(tokenizer.stop_token_ids) or sorted(stop_token_ids)
        tokens = tokenizer.for_grammars(vocab_size, tuple(known))
        self._unknown_ends = sorted({*stop_token_ids} - {*known})
        self._no_ends = sorted({*known} - {*stop_token_ids})
        self._matcher = LLMatcher(tokens, compiled, log_level=0)
        self._read: list[int] = []  # of the answer, what the matcher has consumed
        if self._matcher.is_error():
            raise LibraryError(shown, self._reason())
        self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise ValueError(f"{shown}: nothing satisfies it")

    def allowed(self, answer: Int64Array) -> NDArray[np.bool_] | None:
        """Which tokens may follow an answer's tokens i64[n], bool[V].

        None: the answer itself does not fit, as with a wrong draft; no token after it counts.
        """
        wanted = answer.tolist()
        kept = 0
        for ours, theirs in zip(self._read, wanted, strict=False):
            if ours != theirs:
                break
            kept += 1
        if kept < len(self._read):
            self._matcher.rollback(len(self._read) - kept)
        more = wanted[kept:]
        taken = self._matcher.try_consume_tokens(more) if more else 0
        self._read = wanted[: kept + taken]
        if taken < len(more):
            return None
        return self._mask()

    def _mask(self) -> NDArray[np.bool_]:
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise LibraryError("the grammar cannot be followed", self._reason())
        bits = np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(np.bool_)
        bits[self._no_ends] = False
        bits[self._unknown_ends] |= self._matcher.is_accepting()
        return bits

    def _reason(self) -> str:
        return one_line(str(self._matcher.get_error()).split("<state>")[0].strip())

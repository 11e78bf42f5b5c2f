"""What the answers to one request have in common, made once and shared by all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specplug.bad_words import with_bad_words
from specplug.ends import check_ends
from specplug.expected_text import ExpectedText
from specplug.generation_options import GREEDY, GenerationOptions
from specplug.grammar import CompiledGrammar, Grammar
from specplug.logit_rules import LogitRules, token_array
from specplug.text import Tokenizer
from specplug.types import EngineSpec, Int64Array


class Preparation:
    """The compiled grammar, the rules of sampling and the encoded prediction of a request.

    Args:
        options: of the request's generations.
        spec: of the target.
        tokenizer: None: there is no text.
        own_stop_token_ids: tokens that end an answer unless ``ignore_eos`` is asked for.
        rehearse: called with a grammar before it is compiled, to refuse what would take too long.

    Raises:
        ValueError: an option that cannot be followed.
        MissingExtraError: structured output is asked for and its library is not installed.
    """

    def __init__(
        self,
        options: GenerationOptions,
        *,
        spec: EngineSpec,
        tokenizer: Tokenizer | None,
        own_stop_token_ids: frozenset[int],
        rehearse: Callable[[str], None] | None = None,
    ) -> None:
        self.sampling = with_bad_words(
            options.get("sampling", GREEDY), options.get("bad_words", ()), tokenizer
        )
        given = frozenset(options.get("stop_token_ids", ()))
        self.ends = given if options.get("ignore_eos", False) else given | own_stop_token_ids
        """The tokens that end an answer."""
        min_tokens = options.get("min_tokens", 0)
        check_ends(self.sampling, self.ends, own_stop_token_ids, min_tokens=min_tokens)
        self.sampling.check_tokens(spec.vocab_size)
        self.rules = LogitRules(self.sampling)
        self._spec = spec
        self._tokenizer = tokenizer
        self._prediction = options.get("prediction", ())
        self._predicted: dict[bool, ExpectedText] = {}  # by whether the answer begins a text
        self._grammar: CompiledGrammar | None = None
        if self.sampling.structured:
            self._grammar = CompiledGrammar(
                self.sampling,
                tokenizer,
                vocab_size=spec.vocab_size,
                stop_token_ids=tuple(self.ends),
                rehearse=rehearse,
            )

    def grammar(self) -> Grammar | None:
        """What another answer must look like, if anything; cheap."""
        return None if self._grammar is None else Grammar(self._grammar)

    def prediction(self, prompt: Sequence[int]) -> ExpectedText | None:
        """The expected answer to a prompt, if there is one.

        Raises:
            ValueError: it has token ids outside the vocabulary, is text and there is no tokenizer,
                or is longer than any answer to the prompt can be.
        """
        expected, tokenizer = self._prediction, self._tokenizer
        if not len(expected):
            return None
        room = self._spec.context_limit - len(prompt)
        if isinstance(expected, str):
            if tokenizer is None:
                raise ValueError("a prediction in text needs a tokenizer: pass token ids")
            _check_room(tokenizer.fewest_tokens(expected), room)
            begins = tokenizer.begins_text(prompt)
            if begins not in self._predicted:
                tokens = token_array(tokenizer.encode_after(prompt, expected))
                _check_room(len(tokens), room)
                self._predicted[begins] = ExpectedText(tokens)
        else:
            begins = True
            _check_room(len(expected), room)
            if begins not in self._predicted:
                self._predicted[begins] = ExpectedText(_checked(expected, self._spec.vocab_size))
        found = self._predicted[begins]
        _check_room(len(found.tokens), room)
        return found


def _checked(expected: Sequence[int], vocab_size: int) -> Int64Array:
    outside = [token for token in expected if not 0 <= token < vocab_size]
    if outside:
        raise ValueError(
            f"prediction: token id {outside[0]} is outside the vocabulary of {vocab_size}"
        )
    return token_array(expected)


def _check_room(tokens: int, room: int) -> None:
    if tokens > room:
        raise ValueError(
            f"prediction: it has {tokens} tokens or more, and the context has room for {room} after"
            " the prompt: shorten it"
        )

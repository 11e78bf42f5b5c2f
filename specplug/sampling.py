"""From a row of logits to the distribution that the next token is drawn from.

The order is that of transformers: bias, penalties, bans, custom processors; then temperature,
top-k, top-p, min-p, typical-p. Penalties look at the tokens before, so a drafted position sees the
drafts before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from specplug.arguments import check_ranges, check_types
from specplug.logit_rules import LogitRules
from specplug.types import EngineError, Float32Array, Float64Array, Int64Array, SpecplugError

Acceptance = Literal["coupled", "rejection", "block"]
Processor = Callable[[Int64Array, Float32Array], Float32Array]
"""A custom processor: tokens so far i64[n], prompt included, and logits f32[V] to other logits.

It is called for drafted positions, too, with the drafts before them among the tokens, in any order
and perhaps more than once for a position: the result may depend on its arguments alone. It may not
write to the tokens; a result of another shape is a ``ValueError``."""

_CHUNK = 128  # of the vocabulary; bounds the search for the k-th largest
_FLOORS = (2**-4, 2**-8, 2**-12, 2**-16, 0.0)  # of what top-p sorts


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen; the default is greedy decoding.

    Raises:
        ValueError: a value outside its range, with the range.
    """

    temperature: float = 0.0
    """0: the likeliest token; else logits are divided by it."""
    top_k: int = 0
    """Only the k likeliest tokens, and those as likely as the last of them; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have at least this probability."""
    min_p: float = 0.0
    """Only tokens with at least this share of the likeliest one's probability."""
    typical_p: float = 1.0
    """Only the tokens whose surprise is nearest to the row's entropy (arXiv:2202.00666)."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that occurred."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """As presence_penalty, for each time."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to logits, by token id."""
    no_repeat_ngram: int = 0
    """No n tokens in a row occur twice, the prompt included; 0: no such rule."""
    banned_tokens: Sequence[int] = ()
    """Never chosen."""
    bad_words_ids: Sequence[Sequence[int]] = ()
    """Sequences of tokens that are never completed; they may begin in the prompt."""
    allowed_token_ids: Sequence[int] | None = None
    """Only these are chosen, stop tokens among them if they may come; None: all."""
    forced_tokens: Mapping[int, int] = field(default_factory=dict)
    """What the answer has at a position, its first token being 0."""
    processors: Sequence[Processor] = ()
    """Custom ones, called after the bans and before the temperature."""
    json_schema: Mapping[str, Any] | bool | str | None = None
    """The answer is JSON of this schema (a string is the schema's own JSON)."""
    json_object: bool = False
    """The answer is a JSON object."""
    regex: str | None = None
    """The answer as a whole matches this expression."""
    choice: Sequence[str] | None = None
    """The answer is one of these texts."""
    grammar: str | None = None
    """The answer fits this grammar, in llguidance's Lark or, with ``::=``, in llama.cpp's GBNF."""
    structural_tag: Mapping[str, Any] | str | None = None
    """The answer is text in which what a trigger begins has a given form; see
    :func:`specplug.structural_tags.structural_grammar` (a string is its JSON)."""
    seed: int = 0
    """0 <= seed < 2**64. The coupled rule's text depends on it alone."""
    acceptance: Acceptance = "coupled"
    """The rule by which drafts are accepted when temperature > 0."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("banned_tokens", "allowed_token_ids"):
            value = getattr(self, name)
            if isinstance(value, np.ndarray | Set | list):  # the caller may write to it later
                object.__setattr__(self, name, tuple(map(int, value)))
        for name in ("logit_bias", "forced_tokens"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        ranges = (
            ("temperature", ">= 0", 0 <= self.temperature < math.inf),
            ("temperature", f"0, or {_SCALES}", not self.temperature or _scales(self.temperature)),
            ("top_k", ">= 0", self.top_k >= 0),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            ("min_p", "in [0, 1]", 0 <= self.min_p <= 1),
            ("typical_p", "in (0, 1]", 0 < self.typical_p <= 1),
            ("repetition_penalty", "> 0", 0 < self.repetition_penalty < math.inf),
            ("repetition_penalty", _SCALES, _scales(self.repetition_penalty)),
            ("presence_penalty", "finite", math.isfinite(self.presence_penalty)),
            ("frequency_penalty", "finite", math.isfinite(self.frequency_penalty)),
            ("presence_penalty", _SHIFTS, _shifts(self.presence_penalty)),
            ("frequency_penalty", _SHIFTS, _shifts(self.frequency_penalty)),
            ("no_repeat_ngram", ">= 0", self.no_repeat_ngram >= 0),
            ("seed", "in [0, 2**64)", 0 <= self.seed < 1 << 64),
            ("acceptance", "coupled, rejection or block", self.acceptance in _RULES),
        )
        check_ranges(self, ranges)
        for token, bias in self.logit_bias.items():
            if not _shifts(bias):
                raise ValueError(
                    f"logit_bias {bias!r} of token {token}: it must be {_SHIFTS} (banned_tokens "
                    "excludes tokens)"
                )
        for position in self.forced_tokens:
            if position < 0:
                raise ValueError(f"forced_tokens: position {position} of the answer must be >= 0")
        if len(self.forms) > 1:
            raise ValueError(f"{' and '.join(self.forms)} exclude one another: give one of them")
        if any(not len(one) or isinstance(one, Set) for one in self.bad_words_ids):
            raise ValueError("bad_words_ids: each must be a sequence of at least one token id")
        self._check_allowed()

    def _check_allowed(self) -> None:
        """Refuse permissions that leave nothing, and forced tokens that are forbidden."""
        if self.allowed_token_ids is not None and not len(self.allowed_token_ids):
            raise ValueError("allowed_token_ids: it is empty: nothing could be chosen")
        banned = {*self.banned_tokens}
        allowed = None if self.allowed_token_ids is None else {*self.allowed_token_ids}
        for place, token in self.forced_tokens.items():
            if token in banned:
                raise ValueError(f"forced_tokens: token {token} at {place} is in banned_tokens")
            if allowed is not None and token not in allowed:
                raise ValueError(
                    f"forced_tokens: token {token} at {place} is not in allowed_token_ids"
                )
        self.check_choice(())

    def check_choice(self, withheld: Iterable[int]) -> None:
        """Refuse ``allowed_token_ids`` of which nothing is left.

        Args:
            withheld: token ids that cannot be chosen, beside the banned ones.

        Raises:
            ValueError: all that is allowed is banned or withheld.
        """
        withheld = {*withheld}
        if self.allowed_token_ids is not None and not self.may_choose(
            token for token in self.allowed_token_ids if token not in withheld
        ):
            raise ValueError(
                "allowed_token_ids: none of them may come: all are banned, bad words, or stop "
                "tokens that min_tokens withholds"
            )

    def may_choose(self, tokens: Iterable[int]) -> bool:
        """Whether any of the tokens is neither banned nor outside what is allowed."""
        never = {sequence[0] for sequence in self.bad_words_ids if len(sequence) == 1}
        never |= {*self.banned_tokens}
        allowed = None if self.allowed_token_ids is None else {*self.allowed_token_ids}
        return any(token not in never and (allowed is None or token in allowed) for token in tokens)

    def check_tokens(self, vocab_size: int) -> None:
        """Refuse token ids that the vocabulary does not have.

        Raises:
            ValueError: naming the parameter and the id.
        """
        for name, tokens in (
            ("logit_bias", self.logit_bias),
            ("banned_tokens", self.banned_tokens),
            ("bad_words_ids", chain(*self.bad_words_ids)),
            ("allowed_token_ids", self.allowed_token_ids or ()),
            ("forced_tokens", self.forced_tokens.values()),
        ):
            for token in tokens:
                if not 0 <= token < vocab_size:
                    raise ValueError(f"{name}: token id {token} is not in [0, {vocab_size})")

    @property
    def plain(self) -> bool:
        """Whether the choice is the largest of the logits as they come."""
        return self.temperature == 0 and not self.shapes_logits and not self.structured

    @property
    def structured(self) -> bool:
        """Whether a grammar has a say."""
        return bool(self.forms)

    @property
    def forms(self) -> list[str]:
        """The parameters given that say what the answer as a whole looks like."""
        given = {name: getattr(self, name) for name in FORMS}
        given["json_object"] = given["json_object"] or None
        return [name for name, value in given.items() if value is not None]

    @property
    def shapes_logits(self) -> bool:
        """Whether anything but the temperature and the truncations is at work."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.no_repeat_ngram
            or len(self.banned_tokens)
            or len(self.bad_words_ids)
            or self.allowed_token_ids is not None
            or self.forced_tokens
            or self.processors
        )


FORMS = ("json_schema", "json_object", "regex", "choice", "grammar", "structural_tag")
"""Parameters that say what an answer as a whole looks like; they exclude one another."""
_RULES = ("coupled", "rejection", "block")
_SCALES = "in [1e-8, 1e8]"
_SHIFTS = "in [-1e30, 1e30]"


def _scales(value: float) -> bool:
    """Whether logits can be multiplied and divided by a value in single precision."""
    return 1e-8 <= value <= 1e8


def _shifts(value: float) -> bool:
    """Whether a value can be added to logits in single precision."""
    return -1e30 <= value <= 1e30


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of the next token; only tokens that it can be are listed."""

    weights: Float64Array  # [n], unnormalised
    tokens: Int64Array | None  # [n] ascending; None: all of the vocabulary
    vocab_size: int

    def token(self, index: int) -> int:
        """The id of an entry."""
        return index if self.tokens is None else int(self.tokens[index])

    def shares(self) -> Float64Array:
        """Probabilities of the entries, f64[n]."""
        found: Float64Array = self.weights / self.weights.sum()
        return found

    def of(self, row: Float64Array) -> Float64Array:
        """A row's values f64[V] for the entries, f64[n]."""
        return row if self.tokens is None else row[self.tokens]

    def entry(self, token: int) -> int | None:
        """Where a token is listed, if it is."""
        if self.tokens is None:
            return token
        index = int(np.searchsorted(self.tokens, token))
        return index if index < len(self.tokens) and self.tokens[index] == token else None

    def probabilities(self) -> Float64Array:
        """Of all tokens, f64[V]."""
        shares = self.shares()
        if self.tokens is None:
            return shares
        dense = np.zeros(self.vocab_size)
        dense[self.tokens] = shares
        return dense


# --- what looks at the tokens so far ----------------------------------------------------------


def shape_logits(
    logits: Float32Array, params: SamplingParams, history: Int64Array, prompt_tokens: int
) -> Float32Array:
    """Logits after bias, penalties, bans, forced tokens and processors; see :class:`LogitRules`.

    Args:
        logits: f32[V]; not written to.
        params: what is asked for.
        history: the tokens so far, i64[n], drafts before this position included.
        prompt_tokens: how many of them are the prompt's.

    Returns:
        f32[V], -inf for what cannot be.
    """
    return LogitRules(params).shape(logits, history, prompt_tokens)


# --- temperature and truncation -----------------------------------------------------------------


def distribution(logits: Float32Array, params: SamplingParams) -> Distribution:
    """What temperature (above 0) and truncations make of logits f32[V], each of what is left.

    Raises:
        NothingLeftError: every token is excluded.
    """
    scaled = logits / np.float32(params.temperature)
    tokens: Int64Array | None = None
    if params.top_k and params.top_k < len(scaled):
        tokens = _largest(scaled, params.top_k)
        scaled = scaled[tokens]
    largest = scaled.max(initial=-np.inf)
    if not np.isfinite(largest):
        raise nothing_left(largest)
    weights = np.exp(scaled.astype(np.float64) - np.float64(largest))
    for bound, off, keep in (
        (params.top_p, 1, _top_p),
        (params.min_p, 0, _min_p),
        (params.typical_p, 1, _typical_p),
    ):
        if bound != off:
            kept = keep(weights, bound)
            weights = weights[kept]
            tokens = kept if tokens is None else tokens[kept]
    return Distribution(weights, tokens, len(logits))


class NothingLeftError(ValueError):
    """No token may come next."""


class NoDraftError(SpecplugError):
    """No token can be drafted after these: a rule, the grammar or a processor says so."""


class NoNumbersError(EngineError):
    """An engine's scores are not numbers: no token may be chosen by them."""


def nothing_left(largest: np.floating[Any]) -> NothingLeftError:
    """The error for a shaped row, of logits that were finite, whose largest one is not finite."""
    return NothingLeftError(
        f"no token is left to choose from (largest logit {largest}): bans, forced tokens, the "
        "grammar or processors exclude them all"
    )


def check_numbers(logits: Float32Array) -> None:
    """Refuse an engine's row f32[V] with NaN or infinity, or of minus infinity alone.

    Raises:
        NoNumbersError: as said.
    """
    largest = logits.max()  # NaN if any is; infinite if any is, or all are
    if not np.isfinite(largest):
        raise no_numbers(f"the largest is {largest}")


def no_numbers(what: str) -> NoNumbersError:
    """The error for a row that no token can be chosen by."""
    return NoNumbersError(
        f"the model's scores are not numbers ({what}): the answer ends here; its weights, its "
        "precision or the device it runs on is at fault"
    )


def _largest(values: NDArray[Any], k: int) -> Int64Array:
    """Where the k largest are, ties with the last of them included, -inf left out; ascending."""
    chunks = len(values) // _CHUNK
    candidates = np.arange(len(values))
    if chunks > k:
        peaks = values[: chunks * _CHUNK].reshape(chunks, _CHUNK).max(axis=1)
        # At least k values are as large as the k-th largest peak.
        candidates = np.flatnonzero(values >= np.partition(peaks, chunks - k)[chunks - k])
    found = values[candidates]
    if len(found) > k:
        kth = np.partition(found, len(found) - k)[len(found) - k]
        candidates, found = candidates[found >= kth], found[found >= kth]
    return np.asarray(candidates[found > -np.inf])


def _top_p(weights: Float64Array, bound: float) -> Int64Array:
    """Tokens that are reached, likeliest first, before their mass is ``bound``."""
    wanted = bound * weights.sum()
    largest = weights.max()
    for floor in _FLOORS:  # few tokens are usually enough, and sorting all takes milliseconds
        among = np.flatnonzero(weights >= floor * largest)
        if weights[among].sum() >= wanted:
            break
    order = among[np.argsort(-weights[among], kind="stable")]
    mass = np.cumsum(weights[order])
    return np.sort(order[: np.searchsorted(mass, wanted) + 1])


def _min_p(weights: Float64Array, bound: float) -> Int64Array:
    return np.flatnonzero(weights >= bound * weights.max())


def _typical_p(weights: Float64Array, bound: float) -> Int64Array:
    shares = weights / weights.sum()
    possible = np.flatnonzero(shares)
    surprise = -np.log(shares[possible])
    distance = np.abs(surprise - (shares[possible] * surprise).sum())
    order = np.argsort(distance, kind="stable")
    last = int(np.searchsorted(np.cumsum(shares[possible][order]), bound))
    farthest = distance[order[min(last, len(order) - 1)]]
    return np.asarray(possible[distance <= farthest])

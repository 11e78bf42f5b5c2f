"""Whether a draft speaks the target's tokens, and how it is understood where it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from specplug.bundle import OwnTokenizer, TranslationName
from specplug.export.tokenizers import SourceTokenizer, spelling, vocabulary, write_tokenizer
from specplug.translation import Translation
from specplug.types import ExportError

TOKENIZER = "draft/tokenizer.json"
"""Where a bundle has the tokenizer of a draft that has one of its own."""

# Of the target's tokens of a text, for drafting with those that both have. At 95% (Qwen 2.5 and
# SmolLM2) more was accepted of text that was encoded anew, of every kind and at any temperature.
_ENOUGH = 0.98


@dataclass(frozen=True, slots=True)
class OtherTokens:
    """Of a draft whose tokens are not the target's."""

    tokenizer: SourceTokenizer
    translation: TranslationName
    shared_tokens: int
    agreement: float
    """See :meth:`specplug.translation.Translation.agreement`."""

    @property
    def told(self) -> str:
        """What a user should know."""
        way = {
            "intersection": "it drafts those that both have (token-level intersection)",
            "reencoding": "what it writes is encoded anew (re-encoding)",
        }[self.translation]
        return (
            f"the draft's tokenizer is another than the target's: {self.agreement:.0%} of a text's "
            f"tokens are the same, {self.shared_tokens} of the vocabulary; {way}"
        )

    def write(self, stage: Path) -> OwnTokenizer:
        """Write the draft's tokenizer into a bundle that is being made."""
        return OwnTokenizer(
            tokenizer=write_tokenizer(
                replace(self.tokenizer, chat_template=None), stage, TOKENIZER
            ),
            translation=self.translation,
            shared_tokens=self.shared_tokens,
            agreement=self.agreement,
        )


def pair(
    target: SourceTokenizer | None,
    draft: SourceTokenizer | None,
    target_size: int,
    draft_size: int,
    text: str,
) -> OtherTokens | None:
    """Compare two vocabularies, token by token.

    The embedding tables may differ in length: what lies beyond the tokenizer's tokens is padding.

    Args:
        target: the target's tokenizer, which the bundle will hold.
        draft: the draft's.
        target_size: rows of the target's embedding table.
        draft_size: rows of the draft's.
        text: what they are tried on if they differ.

    Returns:
        None: they are the same.

    Raises:
        ExportError: nothing says what a token is in the other vocabulary, or an embedding table is
            too short.
    """
    if target is None or draft is None:
        if target_size != draft_size:
            raise ExportError(
                f"draft vocabulary {draft_size} != target vocabulary {target_size}, and without "
                "tokenizers nothing says which tokens they share: add both tokenizer.json files"
            )
        return None
    ours, theirs = vocabulary(target.json), vocabulary(draft.json)
    for name, size, tokens in (("target", target_size, ours), ("draft", draft_size, theirs)):
        if size <= max(tokens.values()):
            raise ExportError(
                f"the {name} has {size} embeddings for {max(tokens.values()) + 1} tokens"
            )
    if ours == theirs:
        return None
    try:
        translation = Translation(
            spelling(target), spelling(draft), target_size=target_size, draft_size=draft_size
        )
    except ValueError as error:
        raise ExportError(
            "the draft's tokenizer differs from the target's, and one of them cannot be "
            f"translated: {error}; export a draft with the target's tokenizer"
        ) from error
    agreement = translation.agreement(text)
    return OtherTokens(
        tokenizer=draft,
        translation="intersection" if agreement >= _ENOUGH else "reencoding",
        shared_tokens=len(translation.shared[0]),
        agreement=agreement,
    )

"""Whether a draft speaks the target's tokens."""

from __future__ import annotations

from specplug.export.tokenizers import SourceTokenizer, vocabulary
from specplug.types import ExportError


def check_pair(
    target: SourceTokenizer | None,
    draft: SourceTokenizer | None,
    target_size: int,
    draft_size: int,
) -> None:
    """Compare two vocabularies, token by token.

    The embedding tables may differ in length: what lies beyond the tokenizer's tokens is padding.

    Args:
        target: the target's tokenizer, which the bundle will hold.
        draft: the draft's.
        target_size: rows of the target's embedding table.
        draft_size: rows of the draft's.

    Raises:
        ExportError: naming the first token that differs.
    """
    if target is None or draft is None:
        if target_size != draft_size:
            raise ExportError(
                f"draft vocabulary {draft_size} != target vocabulary {target_size}, and without "
                "tokenizers nothing says which tokens they share: add both tokenizer.json files"
            )
        return
    ours, theirs = vocabulary(target.json), vocabulary(draft.json)
    for token in sorted(ours.keys() | theirs.keys(), key=lambda t: ours.get(t, theirs.get(t, 0))):
        if ours.get(token) != theirs.get(token):
            raise ExportError(
                f"the draft's tokenizer differs from the target's: token {token!r} is "
                f"{theirs.get(token, 'unknown')} there and {ours.get(token, 'unknown')} here; "
                "export a draft with the target's tokenizer"
            )
    needed = max(ours.values()) + 1
    for name, size in (("target", target_size), ("draft", draft_size)):
        if size < needed:
            raise ExportError(f"the {name} has {size} embeddings for {needed} tokens")

"""What is to be exported: a user's words, checked before anything long is imported or read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from specplug.bundle import Dialect
from specplug.checkpoint_path import check_checkpoint, check_gguf
from specplug.export.keeping import KeepMatching
from specplug.export.precision import Precision, check_dialect, choose_precision
from specplug.export.quality_text import sample_text
from specplug.export.self_draft import SelfDraft, parse_self_draft
from specplug.staging import check_place
from specplug.types import ExportError

if TYPE_CHECKING:
    from specplug.export.tensorrt import Target

Report = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """See :func:`specplug.export.export_bundle`."""

    source: str | Path
    precision: Literal["auto"] | Precision = "auto"
    draft: str | Path | None = None
    self_draft: str | None = None
    keep_fp32: str | None = None
    quality_text: str | Path | None = None
    dialect: Dialect = "ort"
    tensorrt: Target | None = None
    hidden: Sequence[int] = ()

    @cached_property
    def choice(self) -> tuple[Precision, str | None]:
        """The target's precision, and why, if this machine chose it."""
        return (
            (self.precision, None) if self.precision != "auto" else choose_precision(self.dialect)
        )

    @cached_property
    def own_draft(self) -> SelfDraft | None:
        """How the target itself drafts.

        Raises:
            ExportError: ``self_draft`` reads as nothing of the kind.
        """
        return parse_self_draft(self.self_draft) if self.self_draft else None

    def check(self, output: Path, *, replace: bool) -> None:
        """Refuse all that can be refused without reading a checkpoint.

        Args:
            output: where the bundle is to be.
            replace: it may take the place of another one.

        Raises:
            ExportError: a path leads nowhere, the bundle cannot be written, or options exclude one
                another.
        """
        check_place(output.absolute(), replace=replace)
        check_checkpoint(Path(self.source))
        if self.draft is not None:
            check_checkpoint(Path(self.draft))
        if self.quality_text is not None:
            sample_text(Path(self.quality_text))
        self.check_options()

    def check_options(self) -> None:
        """Refuse options that exclude one another.

        Raises:
            ExportError: naming them.
        """
        if self.draft is not None and self.self_draft is not None:
            raise ExportError("--draft and --self-draft exclude one another: give one")
        precision, own = self.choice[0], self.own_draft
        if self.self_draft == precision:
            raise ExportError(
                f"--self-draft {precision} is the target's own precision: it would save nothing"
            )
        if self.tensorrt and self.dialect != "standard":
            raise ExportError(
                f"--dialect {self.dialect}: TensorRT builds from --dialect standard only"
            )
        drafted = (own.precision if own else None) or precision
        for each in (precision, drafted):
            check_dialect(each, self.dialect)
        if self.keep_fp32 is not None:
            if {precision, drafted} == {"fp32"}:
                raise ExportError(
                    f"--keep-fp32 {self.keep_fp32!r}: precision fp32 keeps every layer already"
                )
            KeepMatching(self.keep_fp32)  # is it an expression at all?
        if "gguf" in (precision, drafted):
            check_gguf(Path(self.source))

"""Weights that are read, or computed, each time they are used, and never kept.

A checkpoint in fp32 can be twice the memory there is. So a source's tensors are
:class:`LazyTensor`: what transformers and mobius do to them (renaming, joining, transposing) is
recorded, and done when values are asked for, on one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from specplug.types import ExportError


class MissingValuesError(ExportError):
    """A tensor is known by its type and shape only: its file was not downloaded."""


class LazyTensor(torch.Tensor):
    """A tensor that makes its values anew for each operation that mixes it with ordinary ones.

    Operations on lazy tensors alone give lazy tensors; ``numpy`` and ``cpu`` give the values.

    Args:
        like: a tensor on the device ``meta`` with the shape, strides and type.
        make: gives the values; called each time, possibly from several threads.
    """

    _like: torch.Tensor
    _make: Callable[[], torch.Tensor]

    @staticmethod
    def __new__(cls, like: torch.Tensor, make: Callable[[], torch.Tensor]) -> LazyTensor:
        """Make the outside of a tensor, without memory of its own."""
        made: LazyTensor = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=torch.device("cpu")
        )
        made._like, made._make = like, make
        return made

    def values(self) -> torch.Tensor:
        """The tensor itself, freshly made."""
        return self._make()

    def numpy(self, *, force: bool = False) -> Any:
        """The values, as ``torch.Tensor.numpy`` gives them."""
        return self.values().numpy(force=force)

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
        """The values, in memory."""
        return self.values()

    def data_ptr(self) -> int:
        """A number of this tensor's own: what is compared to see whether two weights are tied."""
        return id(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """The shape; the values would have to be made."""
        return f"LazyTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks the classmethod
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[Any, Any] | None = None,
    ) -> Any:
        """Record the operation, or do it if it needs values."""
        named = dict(kwargs or {})

        def compute() -> Any:
            values = tree_map_only(cls, cls.values, (args, named))
            return func(*values[0], **values[1])

        if _needs_values(func, args, named):
            return compute()
        shaped, options = tree_map_only(cls, lambda lazy: lazy._like, (args, named))
        if options.get("device") is not None:
            options["device"] = "meta"
        like = func(*shaped, **options)
        if isinstance(like, torch.Tensor):
            return cls(like, compute)
        return type(like)(cls(part, _item(compute, i)) for i, part in enumerate(like))


def _item(compute: Callable[[], Any], index: int) -> Callable[[], torch.Tensor]:
    return lambda: compute()[index]


def _needs_values(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    schema = func._schema
    ordinary = any(
        isinstance(leaf, torch.Tensor) and not isinstance(leaf, LazyTensor)
        for leaf in tree_leaves((args, kwargs))
    )
    makes_tensors = all("Tensor" in str(value.type) for value in schema.returns)
    return ordinary or schema.is_mutable or not makes_tensors

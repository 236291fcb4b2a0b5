"""Modules that hold angles and compose the functions."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn

from rope_ext import frequencies, ops

__all__ = ["RotaryEmbedding"]


# Positions from here on get rows of their own instead of a table up to them: 2^18 rows of 64 pairs
# are 128 MiB, and making a row costs as much as rotating it eight times.
_TABLE_ROWS = 1 << 18


def _autograd_copies(tensor: Tensor | None) -> bool:
    """In place, a leaf is refused and a view makes the backward pass copy its base.

    A compiler cannot ask which is which, and drops the copies that it does not need.
    """
    if tensor is None or not (torch.is_grad_enabled() and tensor.requires_grad):
        return False
    return torch.compiler.is_compiling() or tensor.is_leaf or tensor._is_view()


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions.

    Pair i of a head turns by ``position * base ** (-2 i / rotary_dim)`` radians. Angles are made in
    float64 and tables kept in float32 (float64 for float64 queries), whatever ``.half()``,
    ``.to(dtype)`` or autocast do to the model: the module has no parameters and no buffers, and its
    tables grow with the positions that it meets.
    Source: RoFormer, Su et al. 2021, section 3.2.2, https://arxiv.org/abs/2104.09864.

    Args:
        head_dim: D, elements of a head.
        base: theta, the base of the frequencies.
        rotary_dim: elements of a head that are rotated; None: all from ``start`` on.
        start: first rotated element.
        interleaved: pairs are neighbours and not half a slice apart.
        seq_dim: -3 for ``(..., S, H, D)``, -2 for ``(..., H, S, D)``.
        inplace: the inputs are consumed: use what is returned. Where autograd would have to copy
            (a view or a leaf that requires grad) the result is a new tensor all the same. False
            leaves the inputs alone.

    Raises:
        ValueError: an odd or too wide rotary_dim, a base that is not positive and finite, or a
            seq_dim other than -3 and -2.

    Example:
        >>> import torch, rope_ext
        >>> rope = rope_ext.RotaryEmbedding(64)
        >>> query, key = torch.randn(2, 10, 8, 64), torch.randn(2, 10, 2, 64)
        >>> query, key = rope(query, key)
        >>> query.shape
        torch.Size([2, 10, 8, 64])
    """

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        start: int = 0,
        interleaved: bool = False,
        seq_dim: int = -3,
        inplace: bool = True,
    ) -> None:
        super().__init__()
        rotary_dim = head_dim - start if rotary_dim is None else rotary_dim
        if start < 0 or start + rotary_dim > head_dim:
            raise ValueError(
                f"rotary_dim must fit into head_dim ({head_dim}) from start on, "
                f"got rotary_dim={rotary_dim} and start={start}"
            )
        if seq_dim not in (-3, -2):
            raise ValueError(
                f"seq_dim must be -3 (..., S, H, D) or -2 (..., H, S, D), got {seq_dim}"
            )
        self.head_dim = head_dim
        self.base = base
        self.rotary_dim = rotary_dim
        self.start = start
        self.interleaved = interleaved
        self.seq_dim = seq_dim
        self.inplace = inplace
        frequencies.standard(rotary_dim, base)  # refuses what is no rotary_dim and no base
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @overload
    def forward(
        self, query: Tensor, key: None = None, positions: Tensor | None = None
    ) -> Tensor: ...

    @overload
    def forward(
        self, query: Tensor, key: Tensor, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, query: Tensor, key: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotates query and key by their positions.

        Args:
            query: ``(..., S, H, D)``, or ``(..., H, S, D)`` with ``seq_dim=-2``.
            key: like query, with heads of its own number, or None.
            positions: ``(S,)`` or ``(..., S)``, int32 or int64, of any size and sign; None: 0 to
                S - 1.

        Returns:
            ``(query, key)``, or ``query`` when key is None.

        Raises:
            As :func:`rope_ext.apply_`.
        """
        self._check(query, positions)
        (cos, sin), positions = self._angles(query, positions)
        flags = (self.seq_dim, None, None, self.start, self.interleaved)
        if self.inplace and not _autograd_copies(query) and not _autograd_copies(key):
            ops.apply(query, key, cos, sin, positions, *flags)
        else:
            query = ops.rotate(query, cos, sin, positions, *flags)
            key = None if key is None else ops.rotate(key, cos, sin, positions, *flags)
        return query if key is None else (query, key)

    def extra_repr(self) -> str:
        return (
            f"{self.head_dim}, base={self.base}, rotary_dim={self.rotary_dim}, start={self.start}, "
            f"interleaved={self.interleaved}, seq_dim={self.seq_dim}, inplace={self.inplace}"
        )

    def _check(self, query: Tensor, positions: Tensor | None) -> None:
        """Refuse what the operator cannot see: it gets a table, not always with positions."""
        if query.dim() < 3:
            raise ValueError(
                f"query must have at least 3 dimensions (tokens, heads, head_dim), "
                f"got {query.dim()}"
            )
        if query.shape[-1] != self.head_dim:
            raise ValueError(
                f"query must have head_dim {self.head_dim} in its last dimension, "
                f"got {query.shape[-1]}"
            )
        if positions is None:
            return
        if positions.dtype not in (torch.int32, torch.int64):
            dtype = str(positions.dtype).removeprefix("torch.")
            raise TypeError(f"positions must be int32 or int64, got {dtype}")
        full = (*query.shape[:-3], query.shape[self.seq_dim])
        dims = positions.dim()
        fits = 1 <= dims <= len(full) and positions.shape[-1] == full[-1]
        if not fits or any(
            size not in (1, wanted)
            for size, wanted in zip(positions.shape[:-1], full[-dims:-1], strict=True)
        ):
            raise ValueError(
                f"positions must broadcast to query's leading dimensions and tokens {full}, "
                f"got shape {tuple(positions.shape)}"
            )

    def _angles(
        self, query: Tensor, positions: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """A table for these positions, and the rows to take from it (None: one a token)."""
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        tokens = query.shape[self.seq_dim]
        if torch.compiler.is_compiling() or type(query) not in (Tensor, nn.Parameter):
            # While tracing there is neither a value to look at nor a table to keep.
            if positions is None:
                positions = torch.arange(tokens, device=query.device)
            return self._make(positions, dtype), None
        if positions is None:
            return self._table(tokens, query.device, dtype), None
        if positions.device.type != "cpu" or positions.numel() == 0:
            return self._make(positions, dtype), None
        first, last = (int(value) for value in positions.aminmax())
        if first >= 0 and last < _TABLE_ROWS:
            return self._table(last + 1, query.device, dtype), positions
        return self._make(positions, dtype), None

    def _table(self, rows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        table = self._tables.get((device, dtype))
        if table is None or len(table[0]) < rows:
            # To the next power of two, so that a growing sequence makes few tables. Ordinary
            # tensors in inference mode too: autograd may save them later.
            with torch.inference_mode(False), torch.no_grad():
                grown = torch.arange(1 << max(rows - 1, 1).bit_length(), device=device)
                table = self._tables[device, dtype] = self._make(grown, dtype)
        return table

    def _make(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        standard = frequencies.standard(self.rotary_dim, self.base)
        return frequencies.tables(positions, standard, dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

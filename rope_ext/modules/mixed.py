"""Learned directions: every head and pair turns by all axes of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rope_ext.frequencies import mixed
from rope_ext.modules.axial import AxialRotaryEmbedding, GridOptions, shares

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MixedRotaryEmbedding(AxialRotaryEmbedding):
    """Rotates by frequencies that each head learns for itself, on all axes at once.

    ``frequencies``, ``(A, H, P)`` in radians per unit of position, is a float32 parameter. It
    begins as axial frequencies whose axes are rotated at random for each head.
    Source: RoPE-Mixed, Heo et al. 2024, https://arxiv.org/abs/2403.13298.

    Args:
        head_dim: D, elements of a head.
        heads: H, those of query and of key.
        axes, bases: as in :class:`AxialRotaryEmbedding`; learned frequencies begin from a small
            base.
        generator: of the random rotations; on the CPU.
        options: as in :class:`AxialRotaryEmbedding`; ``learnable=False`` leaves the frequencies as
            they are drawn.

    Raises:
        ValueError: as :class:`AxialRotaryEmbedding`, or heads is not positive.

    Example:
        >>> import torch, rope_ext
        >>> rope = rope_ext.MixedRotaryEmbedding(64, heads=6)
        >>> query, key = rope(torch.randn(12, 6, 64), torch.randn(12, 6, 64), (3, 4))
        >>> (query * key).sum().backward()
        >>> rope.frequencies.grad.shape
        torch.Size([2, 6, 32])
    """

    def __init__(
        self,
        head_dim: int,
        heads: int,
        axes: int | Sequence[int] = 2,
        *,
        bases: float | Sequence[float] = 10.0,
        generator: torch.Generator | None = None,
        **options: Unpack[GridOptions],
    ) -> None:
        dims = shares(head_dim - options.get("start", 0), axes)
        options.setdefault("learnable", True)
        frequencies = mixed(dims, heads, bases, generator)
        super().__init__(head_dim, frequencies=frequencies, **options)

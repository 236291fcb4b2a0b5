"""Rotation that forgets: scores that fade with the distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rope_ext import ops
from rope_ext.frequencies import standard
from rope_ext.modules.rotation import TABLES, Angles, Options, Rotation, turn

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Of Sun et al., who chose it for a smooth decay.
_GAMMA = 0.4


class XPosRotaryEmbedding(Rotation):
    """Rotates queries and keys so that the score of a pair fades with their distance: xPos.

    Pair i of a query at position p is multiplied by ``zeta ** ((p - centre) / scale_base)``, that
    of a key by the inverse, where ``zeta = (2 i / rotary_dim + 0.4) / 1.4``. In a score the centre
    cancels: a query at p and a key at q meet as ``zeta ** ((p - q) / scale_base)``, slow pairs
    fading least. That holds only while both used the same centre. The published code puts it into
    the middle of the sequence, so that it moves as the sequence grows, and a key in a cache, scaled
    around an earlier centre, is wrong by ``zeta ** (moved / scale_base)``; here it is fixed.

    The fastest pair grows or shrinks 3.5 times every scale_base tokens: with 512, positions must
    stay within 36000 of the centre for float32 and bfloat16, 4500 for float16.
    Source: Sun et al. 2022, section 2.2, https://arxiv.org/abs/2212.10554.

    Args:
        head_dim: D, elements of a head.
        centre: the position at which nothing is scaled, the same for the life of a cache.
        scale_base: tokens over which a pair fades by zeta; positive.
        base, rotary_dim: as in :class:`rope_ext.RotaryEmbedding`.
        options: start, interleaved, seq_dim, inplace and learnable, as in :class:`Rotation`.

    Raises:
        ValueError: as :class:`rope_ext.RotaryEmbedding`, or scale_base is not positive.

    Example:
        >>> import torch, rope_ext
        >>> rope = rope_ext.XPosRotaryEmbedding(2, centre=1024)
        >>> query, key = torch.ones(2, 1, 2), torch.ones(2, 1, 2)
        >>> query, key = rope(query, key, torch.tensor([1024, 1536]))
        >>> query.norm(dim=-1).flatten() * key.norm(dim=-1).flatten()
        tensor([2.0000, 2.0000])
        >>> round((query[0].norm() / query[1].norm()).item(), 4)
        3.5
    """

    def __init__(
        self,
        head_dim: int,
        *,
        centre: float = 0.0,
        scale_base: float = 512.0,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        if not scale_base > 0:
            raise ValueError(f"scale_base must be positive, got {scale_base}")
        elements = head_dim - options.get("start", 0) if rotary_dim is None else rotary_dim
        super().__init__(head_dim, standard(elements, base), **options)
        self.centre = centre
        self.scale_base = scale_base

    def forward(
        self, query: Tensor, key: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotates and scales query and key by their positions.

        Args:
            query: ``(..., S, H, D)``, or ``(..., H, S, D)`` with ``seq_dim=-2``.
            key: like query, with heads of its own number, or None.
            positions: ``(S,)`` or ``(..., S)``, int32, int64, float32 or float64. None: the token's
                index.

        Returns:
            ``(query, key)``, or ``query`` when key is None.

        Raises:
            As :func:`rope_ext.apply_`.
        """
        self._check(query)
        cos, sin, fade = self._angles(query, query.shape[self.seq_dim], positions)
        angles = _tables(cos * fade, sin * fade, query.dtype)
        query, _ = turn(query, None, angles, self._flags(), self.inplace, TABLES)
        if key is None:
            return query
        angles = _tables(cos / fade, sin / fade, key.dtype)
        key, _ = turn(key, None, angles, self._flags(), self.inplace, TABLES)
        return query, key

    def forward_packed(
        self, qkv: Tensor, num_heads: int, num_key_heads: int, positions: Tensor | None = None
    ) -> Tensor:
        """As :meth:`Rotation.forward_packed`, by tables with a head axis."""
        cos, sin, fade = self._angles(qkv, qkv.shape[-2], positions)
        of_query, of_key = fade.unsqueeze(-2), fade.reciprocal().unsqueeze(-2)
        fades = torch.cat(
            (
                of_query.repeat_interleave(num_heads, dim=-2),
                of_key.repeat_interleave(num_key_heads, dim=-2),
            ),
            dim=-2,
        )
        # A table with a head axis has all of the leading dimensions.
        fades = fades[(None,) * (qkv.dim() + 1 - fades.dim())]
        angles = _tables(cos.unsqueeze(-2) * fades, sin.unsqueeze(-2) * fades, qkv.dtype)
        flags = self._packed_flags(num_heads + num_key_heads)
        return turn(qkv, None, angles, flags, self.inplace, TABLES)[0]

    def _angles(
        self, query: Tensor, tokens: int, positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cosine, sine and what multiplies a query: ``(..., S, P)``, float64."""
        if positions is None:
            positions = torch.arange(tokens, device=query.device)
        cos, sin = ops.cos_sin(positions, self._frequencies(positions), 1.0, torch.float64)
        pairs = torch.arange(cos.shape[-1], dtype=torch.float64, device=query.device)
        zeta = (pairs / cos.shape[-1] + _GAMMA) / (1 + _GAMMA)
        scales = (positions.to(torch.float64) - self.centre) / self.scale_base
        return cos, sin, zeta ** scales.unsqueeze(-1)


def _tables(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Angles:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return cos.to(compute), sin.to(compute), None

"""Rotation frequencies, and the cosine and sine tables that they give."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def standard(rotary_dim: int, base: float = 10000.0) -> Tensor:
    """Return the frequencies of RoFormer, ``base ** (-2 i / rotary_dim)`` for pair ``i``.

    Args:
        rotary_dim: the elements of a head that are rotated, twice the number of pairs; even and
            positive.
        base: the ratio between the first frequency and where the last one tends; positive and
            finite. Llama calls it ``rope_theta``.

    Returns:
        ``(rotary_dim / 2,)`` in radians per unit of position, float64, from 1 downwards.

    Raises:
        ValueError: ``rotary_dim`` is odd or not positive, or ``base`` is not positive and finite.

    Source: RoFormer, Su et al. 2021, section 3.2.2.

    >>> standard(4).tolist()
    [1.0, 0.01]
    """
    if rotary_dim <= 0 or rotary_dim % 2 != 0:
        raise ValueError(f"rotary_dim must be even and positive, got {rotary_dim}")
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"base must be positive and finite, got {base}")
    # On the CPU even where a module is built on the meta device.
    return torch.tensor(
        [base ** (-2 * pair / rotary_dim) for pair in range(rotary_dim // 2)],
        dtype=torch.float64,
        device="cpu",
    )


def tables(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return the cosine and the sine of every position at every frequency.

    The angles ``position * frequency`` and their cosines are computed in float64 and rounded once,
    to ``dtype``. In float32 the product alone would be wrong by 8e-3 radians at position 131072.

    Args:
        positions: any shape, integers or floating point.
        frequencies: ``(P,)`` in radians per unit of position.
        dtype: the floating-point dtype of the tables.

    Returns:
        ``(cos, sin)``, each ``positions.shape + (P,)``, dimensionless, on the positions' device.

    Raises:
        ValueError: ``frequencies`` has not exactly one dimension.
        TypeError: ``dtype`` is not a floating-point dtype.

    Source: RoFormer, Su et al. 2021, section 3.2.2.

    >>> cos, sin = tables(torch.arange(8), standard(4))
    >>> cos.shape, cos.dtype
    (torch.Size([8, 2]), torch.float32)
    >>> cos[0].tolist(), sin[0].tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    if frequencies.dim() != 1:
        raise ValueError(f"frequencies must have 1 dimension, got {frequencies.dim()}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating point, got {dtype}")
    angles = positions.to(torch.float64).unsqueeze(-1) * frequencies.to(
        device=positions.device, dtype=torch.float64
    )
    return angles.cos().to(dtype), angles.sin().to(dtype)

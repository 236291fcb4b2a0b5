"""The rotation as functions: in place, and its functional twin."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from rope_ext import ops

__all__ = ["apply_", "apply_frequencies_", "cos_sin", "rotate", "rotate_frequencies"]


@overload
def apply_(
    query: Tensor,
    key: None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    seq_dim: int = -3,
    head_dim: int | None = None,
    num_heads: int | None = None,
    start: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
) -> Tensor: ...


@overload
def apply_(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    seq_dim: int = -3,
    head_dim: int | None = None,
    num_heads: int | None = None,
    start: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]: ...


def apply_(
    query: Tensor,
    key: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    seq_dim: int = -3,
    head_dim: int | None = None,
    num_heads: int | None = None,
    start: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Rotates query and key in place, in one pass, by the angles of a table.

    A pair ``(x, y)`` of a head at angle ``a`` becomes ``(x cos a - y sin a, x sin a + y cos a)``.
    Arithmetic is float32 (float64 for float64 tensors) with one rounding at the store; the result
    is the same bits on every instruction set, for any strides, batch and number of threads.
    Source: RoFormer, Su et al. 2021, https://arxiv.org/abs/2104.09864.

    Args:
        query: ``(..., S, H, D)`` or, with ``seq_dim=-2``, ``(..., H, S, D)``; with ``head_dim``
            flat, ``(..., S, H * D)``. float16, bfloat16, float32 or float64, any strides.
        key: like query, with heads of its own number; None rotates query alone.
        cos: cosines, ``(rows, P)`` with a row a token (``rows >= S``), or ``(..., S, P)`` that
            broadcasts over the leading dimensions, or with a head axis beside the tokens, in
            query's order, of size 1 or the number of rotated heads. P pairs are rotated. float32,
            float64 or query's dtype.
        sin: sines, of the same shape and dtype.
        positions: ``(S,)`` or ``(..., S)``, int32 or int64: token t takes row ``positions[t]`` of
            a ``(rows, P)`` table. None: row t.
        seq_dim: -3 or -2, where the tokens are.
        head_dim: D of flat tensors, which are rotated without a view.
        num_heads: rotates the first heads of query only. With ``head_dim`` and packed
            ``(..., S, (Hq + Hk + Hv) * D)``, ``num_heads=Hq + Hk`` rotates query and key.
        start: first rotated element of a head (partial rotary); the slice ends at ``start + 2 P``.
        interleaved: pairs are neighbours (GPT-J, Meta) and not half a slice apart (NeoX, Llama).
        inverse: rotates by the opposite angles.

    Returns:
        ``(query, key)``, or ``query`` when key is None: the tensors that were given.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes, values or devices that do not fit, or memory that overlaps.
        IndexError: a position outside ``[0, rows)`` (CPU). Nothing has changed then.
        RuntimeError: autograd's own rules, such as a leaf that requires grad.

    Example:
        >>> import torch, rope_ext
        >>> query, key = torch.ones(1, 3, 2, 4), torch.ones(1, 3, 1, 4)
        >>> angles = torch.outer(torch.arange(3.0), torch.tensor([1.0, 0.01]))
        >>> _ = rope_ext.apply_(query, key, angles.cos(), angles.sin())
        >>> query[0, 1, 0]
        tensor([-0.3012,  0.9900,  1.3818,  1.0099])
    """
    ops.apply(
        query,
        key,
        cos,
        sin,
        positions,
        seq_dim,
        head_dim,
        num_heads,
        start,
        interleaved,
        inverse,
    )
    return query if key is None else (query, key)


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    seq_dim: int = -3,
    head_dim: int | None = None,
    num_heads: int | None = None,
    start: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
) -> Tensor:
    """Returns x rotated by the angles of a table: the functional twin of :func:`apply_`.

    One fused pass from x to the result, which has x's dtype and memory format. What is not rotated
    is copied. Source: RoFormer, Su et al. 2021, https://arxiv.org/abs/2104.09864.

    Args:
        x: ``(..., S, H, D)``, or as ``seq_dim`` and ``head_dim`` say.
        cos, sin, positions, seq_dim, head_dim, num_heads, start, interleaved, inverse: as in
            :func:`apply_`.

    Returns:
        A new tensor of x's shape.

    Raises:
        TypeError, ValueError, IndexError: as in :func:`apply_`. x may overlap itself here.

    Example:
        >>> import torch, rope_ext
        >>> x = torch.tensor([1.0, 0.0]).reshape(1, 1, 2)
        >>> quarter = torch.tensor([[torch.pi / 2]])
        >>> rope_ext.rotate(x, quarter.cos(), quarter.sin()).round().flatten()
        tensor([-0.,  1.])
    """
    return ops.rotate(
        x, cos, sin, positions, seq_dim, head_dim, num_heads, start, interleaved, inverse
    )


@overload
def apply_frequencies_(
    query: Tensor,
    key: None,
    positions: Tensor | None,
    frequencies: Tensor,
    scale: float = 1.0,
    *,
    seq_dim: int = -3,
    head_dim: int | None = None,
    num_heads: int | None = None,
    start: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
) -> Tensor: ...


@overload
def apply_frequencies_(
    query: Tensor,
    key: Tensor,
    positions: Tensor | None,
    frequencies: Tensor,
    scale: float = 1.0,
    *,
    seq_dim: int = -3,
    head_dim: int | None = None,
    num_heads: int | None = None,
    start: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]: ...


def apply_frequencies_(
    query: Tensor,
    key: Tensor | None,
    positions: Tensor | None,
    frequencies: Tensor,
    scale: float = 1.0,
    *,
    seq_dim: int = -3,
    head_dim: int | None = None,
    num_heads: int | None = None,
    start: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Rotates query and key in place by positions and frequencies, without a table.

    The angle of a token's pair i in head h is the sum over axes a of
    ``positions[token, a] * frequencies[a, h, i]``. With integer positions it is exact modulo one
    turn at any position, of either sign; with floating ones the product is exact before it is
    rounded to 2^-64 turns. Cosine and sine are within 1.3e-7 (3e-16 for float64 tensors, and what
    the resolution of a frequency leaves, 1.7e-19 for a unit of position).
    Source: RoFormer, Su et al. 2021, https://arxiv.org/abs/2104.09864; axes as in Heo et al. 2024,
    https://arxiv.org/abs/2403.13298.

    Args:
        query, key: as in :func:`apply_`.
        positions: ``(S,)`` or ``(..., S)`` for ``(P,)`` frequencies, and with a last axis A for
            others; int32, int64, float32 or float64. None: the index of the token, on every axis.
        frequencies: ``(P,)``, ``(A, P)`` or ``(A, H, P)``, H being 1 or the number of rotated
            heads: float32 or float64 in radians per unit of position, or int64 in turns, of which
            2^64 are one (:func:`rope_ext.frequencies.turns`).
        scale: multiplies cosine and sine (an attention factor).
        seq_dim, head_dim, num_heads, start, interleaved, inverse: as in :func:`apply_`.

    Returns:
        ``(query, key)``, or ``query`` when key is None: the tensors that were given.

    Raises:
        TypeError: a dtype that is not listed above, or floating positions with turns.
        ValueError: shapes, values or devices that do not fit, or memory that overlaps.
        RuntimeError: autograd's own rules, such as a leaf that requires grad.

    Example:
        >>> import torch, rope_ext
        >>> query = torch.ones(1, 3, 1, 4)
        >>> positions = torch.tensor([0, 1, 2**31])
        >>> frequencies = rope_ext.frequencies.standard(4)
        >>> rope_ext.apply_frequencies_(query, None, positions, frequencies)[0, :, 0, 0]
        tensor([ 1.0000, -0.3012,  1.2091])
    """
    ops.apply_frequencies(
        query,
        key,
        positions,
        frequencies,
        scale,
        seq_dim,
        head_dim,
        num_heads,
        start,
        interleaved,
        inverse,
    )
    return query if key is None else (query, key)


def rotate_frequencies(
    x: Tensor,
    positions: Tensor | None,
    frequencies: Tensor,
    scale: float = 1.0,
    *,
    seq_dim: int = -3,
    head_dim: int | None = None,
    num_heads: int | None = None,
    start: int = 0,
    interleaved: bool = False,
    inverse: bool = False,
) -> Tensor:
    """Returns x rotated by positions and frequencies: the twin of :func:`apply_frequencies_`.

    One fused pass from x to the result, which has x's dtype and memory format. What is not rotated
    is copied, and not scaled. Source: RoFormer, Su et al. 2021, https://arxiv.org/abs/2104.09864.

    Args:
        x: as in :func:`rotate`.
        positions, frequencies, scale: as in :func:`apply_frequencies_`.
        seq_dim, head_dim, num_heads, start, interleaved, inverse: as in :func:`apply_`.

    Returns:
        A new tensor of x's shape.

    Raises:
        TypeError, ValueError: as in :func:`apply_frequencies_`. x may overlap itself here.

    Example:
        >>> import torch, rope_ext
        >>> x = torch.tensor([1.0, 0.0]).reshape(1, 1, 2)
        >>> quarter = torch.tensor([torch.pi / 2], dtype=torch.float64)
        >>> rope_ext.rotate_frequencies(x, torch.tensor([5]), quarter).round().flatten()
        tensor([0., 1.])
    """
    return ops.rotate_frequencies(
        x,
        positions,
        frequencies,
        scale,
        seq_dim,
        head_dim,
        num_heads,
        start,
        interleaved,
        inverse,
    )


def cos_sin(
    positions: Tensor,
    frequencies: Tensor,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines that :func:`rotate_frequencies` turns by, as a table.

    Args:
        positions, frequencies, scale: as in :func:`apply_frequencies_`; positions of any shape,
            with a last axis A for frequencies ``(A, P)`` and ``(A, H, P)``.
        dtype: of the result: float32, which None stands for, float64, float16 or bfloat16.

    Returns:
        ``(cos, sin)``, each of the shape of positions without the axis A, then H where frequencies
        have heads, then P.

    Raises:
        TypeError, ValueError: as in :func:`apply_frequencies_`.

    Source: RoFormer, Su et al. 2021, https://arxiv.org/abs/2104.09864.

    Example:
        >>> import torch, rope_ext
        >>> cos, sin = rope_ext.cos_sin(torch.arange(3), torch.tensor([torch.pi / 2]))
        >>> cos.flatten().round(), sin.flatten().round()
        (tensor([ 1., -0., -1.]), tensor([0., 1., -0.]))
    """
    return ops.cos_sin(positions, frequencies, scale, dtype)

"""The rotation as functions: in place, and its functional twin."""

from __future__ import annotations

from typing import overload

from torch import Tensor

from rope_ext import ops

__all__ = ["apply_", "rotate"]


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

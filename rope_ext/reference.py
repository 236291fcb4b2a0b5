"""The rotation written straight from its definition, in float64: the oracle of every test.

Nothing here is fast and nothing here depends on compiled code.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Rotate the pairs of ``x`` in float64, one PyTorch operation per step of the definition.

    Pair ``(x, y)`` at angle ``a`` becomes ``(x cos a - y sin a, x sin a + y cos a)``.
    ``L`` stands for any leading dimensions, ``S`` for tokens, ``H`` for heads, ``D`` for the
    head dimension and ``P`` for the pairs rotated in each head.

    Args:
        x: ``L + (S, H, D)``, ``L + (H, S, D)`` with ``seq_dim=-2``, or ``L + (S, H * D)`` with
            ``head_dim=D``; any dtype that float64 can hold.
        cos: the cosine of each angle, dimensionless: ``(rows, P)`` with ``rows >= S``, or
            ``L' + (S, P)`` where ``L'`` broadcasts to ``L``, or with a head axis beside the token
            axis, in the order of ``x``, of size 1 or the number of rotated heads.
        sin: the sine of each angle, in the shape of ``cos``.
        positions: ``(S,)`` or ``L' + (S,)``, integers: token ``t`` takes row ``positions[t]`` of
            ``(rows, P)`` tables. None: token ``t`` takes row ``t``.
        seq_dim: the dimension that counts tokens, -3 or -2.
        head_dim: ``D`` of a flat ``x``.
        num_heads: rotate the first ``num_heads`` heads only.
        start: the first rotated element of a head.
        interleaved: pair ``i`` is elements ``start + 2i`` and ``start + 2i + 1``, instead of
            ``start + i`` and ``start + i + P``.
        inverse: turn by the opposite angle.

    Returns:
        A new float64 tensor of the shape of ``x``; what is not rotated is copied.

    Raises:
        RuntimeError, IndexError: from PyTorch itself, for shapes and positions that do not fit.
            Arguments are not checked beyond that.

    Source: RoFormer, Su et al. 2021, equation 34; ``interleaved=False`` pairs as GPT-NeoX does.

    >>> import torch
    >>> x = torch.tensor([[[1.0, 0.0]]])  # one token, one head, one pair
    >>> quarter_turn = torch.tensor([[0.0]]), torch.tensor([[1.0]])
    >>> rotate(x, *quarter_turn).tolist()
    [[[0.0, 1.0]]]
    """
    heads = x.to(torch.float64)
    if head_dim is not None:
        heads = heads.unflatten(-1, (x.shape[-1] // head_dim, head_dim))
    if seq_dim == -2:
        heads = heads.transpose(-3, -2)

    leading, tokens = heads.dim() - 3, heads.shape[-3]
    cos, sin = (
        _one_row_per_token(table.to(torch.float64), positions, leading, tokens, seq_dim)
        for table in (cos, sin)
    )
    if inverse:
        sin = -sin

    rotated = heads[..., :num_heads, :]
    other_heads = heads[..., rotated.shape[-2] :, :]
    heads = torch.cat((_rotate_pairs(rotated, cos, sin, start, interleaved), other_heads), dim=-2)

    if seq_dim == -2:
        heads = heads.transpose(-3, -2)
    return heads.reshape(x.shape)


def _one_row_per_token(
    table: Tensor, positions: Tensor | None, leading: int, tokens: int, seq_dim: int
) -> Tensor:
    """Bring a table of any accepted form to a shape that broadcasts to ``L + (S, H, P)``."""
    if table.dim() == leading + 3:
        return table.transpose(-3, -2) if seq_dim == -2 else table
    if positions is not None:
        table = table[positions.to(torch.int64)]
    elif table.dim() == 2:
        table = table[:tokens]
    return table.unsqueeze(-2)


def _rotate_pairs(heads: Tensor, cos: Tensor, sin: Tensor, start: int, interleaved: bool) -> Tensor:
    """Rotate elements ``[start, start + 2P)`` of every head of ``L + (S, H, D)``."""
    pairs = cos.shape[-1]
    before = heads[..., :start]
    inside = heads[..., start : start + 2 * pairs]
    after = heads[..., start + 2 * pairs :]

    if interleaved:
        x, y = inside[..., 0::2], inside[..., 1::2]
    else:
        x, y = inside[..., :pairs], inside[..., pairs:]

    new_x = x * cos - y * sin
    new_y = x * sin + y * cos

    if interleaved:
        inside = torch.stack((new_x, new_y), dim=-1).flatten(-2)
    else:
        inside = torch.cat((new_x, new_y), dim=-1)
    return torch.cat((before, inside, after), dim=-1)

"""How far a rotated tensor may be from the float64 reference, derived from one rounding."""

from __future__ import annotations

import torch
from torch import Tensor

import rope_ext
from rope_ext import reference

COMPUTE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}

_SAME_SIZE_INTEGER = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def bits(x: Tensor) -> Tensor:
    """The bit patterns of ``x`` as integers, so that NaN equals itself and 0 differs from -0."""
    return x.contiguous().view(_SAME_SIZE_INTEGER[x.dtype])


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Demand equal bit patterns, except that any NaN matches any NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    actual, expected = actual.cpu(), expected.cpu()
    differ = (bits(actual) != bits(expected)) & ~(actual.isnan() & expected.isnan())
    assert not differ.any(), _first(differ, actual, expected)


def assert_rotated(
    actual: Tensor,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    **options: object,
) -> None:
    """Demand that ``actual`` is ``x`` rotated exactly, then rounded once to the dtype of ``x``.

    A kernel computes ``fl(x c - fl(y s))`` in its compute type, float32 or float64, and rounds to
    the storage type. The inner rounding moves the exact value by at most half an ulp of ``y s``,
    so by at most ``eps / 2 * m`` where ``m = |x c| + |y s|``, or half the smallest subnormal number
    if that is more. Rounding never reverses an order, so the result lies between the roundings of
    the exact value minus and plus that error. For 16-bit tensors both roundings nearly always
    coincide: the test then asks for one exact number.

    The reference rounds three times in float64, which costs ``3 / 2 * eps64 * m`` more; a float64
    kernel rounds its result after that, another ``eps64 / 2 * m``. Tables are first rounded to
    the compute type, as the operator does, since this judges the rotation and not the tables.

    Elements that are not rotated must keep their bits. On a GPU every bit must be the CPU's.
    """
    if actual.is_cuda:
        actual, x, cos, sin = (tensor.cpu() for tensor in (actual, x, cos, sin))
        positions = None if positions is None else positions.cpu()
        assert_same_bits(actual, rope_ext.rotate(x, cos, sin, positions, **options))

    compute = COMPUTE[x.dtype]
    cos, sin = cos.to(compute), sin.to(compute)

    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return reference.rotate(x, cos, sin, positions, **options)

    exact = rotated(x, cos, sin)
    sizes = x.abs(), cos.abs(), sin.abs()
    opposite_sizes = x.abs(), cos.abs(), -sin.abs()
    magnitude = torch.maximum(rotated(*sizes), rotated(*opposite_sizes))
    subnormal = torch.finfo(compute).smallest_normal * torch.finfo(compute).eps
    error = (torch.finfo(compute).eps / 2 + 2 * torch.finfo(torch.float64).eps) * magnitude
    error += subnormal
    lowest = (exact - error).to(compute).to(x.dtype)
    highest = (exact + error).to(compute).to(x.dtype)

    assert actual.dtype == x.dtype
    assert actual.shape == x.shape
    untouched = rotated(torch.ones_like(x), torch.zeros_like(cos), torch.zeros_like(sin)) == 1
    assert_same_bits(actual[untouched], x[untouched])

    finite = exact.isfinite()
    within = (lowest <= actual) & (actual <= highest)
    same_special = (exact == actual) | (exact.isnan() & actual.isnan())
    wrong = ~untouched & ~torch.where(finite, within, same_special)
    assert not wrong.any(), _first(wrong, actual, exact)


def _first(wrong: Tensor, actual: Tensor, expected: Tensor) -> str:
    """Say how many elements are wrong, and what the first of them is instead of."""
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements are wrong, "
        f"the first at {wrong.nonzero()[0].tolist()}: "
        f"{actual[wrong][0].item()!r} instead of {expected[wrong][0].item()!r}"
    )

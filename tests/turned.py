"""How far a tensor rotated by positions and frequencies may be from the float64 reference."""

from __future__ import annotations

import math

import torch
from tolerance import COMPUTE
from torch import Tensor

from rope_ext import frequencies, reference

# What the operators promise of cosine and sine, and the share of |position| in it.
COS_SIN = {torch.float16: 1e-6, torch.bfloat16: 1e-6, torch.float32: 2.5e-7, torch.float64: 1e-14}
COS_SIN_OF_FLOATING = {**COS_SIN, torch.float32: 5e-7}
RESOLUTION = 2e-19


def exact_angles(positions: Tensor, radians: Tensor) -> Tensor:
    """Angles ``(..., S, P)`` or ``(..., S, H, P)`` in float64, exact for whole positions."""
    if radians.dim() > 1:
        positions = positions.reshape(*positions.shape, *[1] * (radians.dim() - 1))
    else:
        positions = positions.unsqueeze(-1)
    axis = -radians.dim()
    if positions.is_floating_point():
        products = positions.double() * radians.double()
        return products.sum(axis) if radians.dim() > 1 else products
    products = positions.long() * frequencies.turns(radians)
    angles = products.sum(axis) if radians.dim() > 1 else products
    return angles.double() * (2 * math.pi / 2**64)


def rotated(
    x: Tensor, positions: Tensor | None, radians: Tensor, scale: float = 1.0, **options: object
) -> Tensor:
    """``x`` rotated in float64 by exact angles."""
    if positions is None:
        positions = torch.arange(x.shape[_token_dim(options)])
        if radians.dim() > 1:
            positions = positions.unsqueeze(-1).expand(-1, radians.shape[0])
    angles = exact_angles(positions, radians)
    if radians.dim() == 3:
        # A table with a head axis has all leading dimensions, and query's order.
        missing = x.dim() + ("head_dim" in options) - angles.dim()
        angles = angles[(None,) * missing]
        if options.get("seq_dim", -3) == -2:
            angles = angles.transpose(-3, -2)
    return reference.rotate(x, scale * angles.cos(), scale * angles.sin(), **options)


def assert_turned(
    actual: Tensor,
    x: Tensor,
    positions: Tensor | None,
    radians: Tensor,
    scale: float = 1.0,
    **options: object,
) -> None:
    """Demand that ``actual`` is ``x`` turned by exact angles, up to what the operators promise.

    Cosine and sine of the operator are within ``COS_SIN`` of the exact ones, which moves the exact
    result by at most that times ``|x| + |y|``. Products and their sum round in the compute type, by
    at most its eps times ``|x| + |y|`` together, and the store rounds once more; rounding never
    reverses an order, so the result lies between the two roundings.
    """
    exact = rotated(x, positions, radians, scale, **options)
    compute = COMPUTE[x.dtype]
    floating = positions is not None and positions.is_floating_point()
    promised = (COS_SIN_OF_FLOATING if floating else COS_SIN)[x.dtype]
    if floating:
        # The reference itself rounds the product of position and frequency.
        largest = exact_angles(positions.abs(), radians.abs()).max().item()
        promised += torch.finfo(torch.float64).eps * largest
    elif positions is not None and positions.numel() > 0:
        promised += RESOLUTION * positions.abs().max().item()
    rows = torch.ones(x.shape[_token_dim(options)], radians.shape[-1], dtype=torch.float64)
    magnitude = torch.maximum(
        *(reference.rotate(x.abs(), rows, s, **options) for s in (rows, -rows))
    )
    touched = reference.rotate(torch.ones_like(x), 0 * rows, 0 * rows, **options) == 0
    error = touched * magnitude * scale * (promised + torch.finfo(compute).eps)
    lowest = (exact - error).to(compute).to(x.dtype)
    highest = (exact + error).to(compute).to(x.dtype)
    assert actual.dtype == x.dtype
    assert actual.shape == x.shape
    wrong = ~((lowest <= actual) & (actual <= highest))
    assert not wrong.any(), (
        f"{int(wrong.sum())} of {wrong.numel()} elements are wrong, the first at "
        f"{wrong.nonzero()[0].tolist()}: {actual[wrong][0].item()!r} instead of "
        f"{exact[wrong][0].item()!r}"
    )


def _token_dim(options: dict[str, object]) -> int:
    return -2 if "head_dim" in options else options.get("seq_dim", -3)

"""Positions and frequencies for tests, and the exact angles that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import pytest
import torch
from inputs import LAYOUTS, Layout
from torch import Tensor

import rope_ext
from rope_ext.frequencies import turns

# Behind the binary point of an angle.
BITS = 160

# Of a cosine or a sine, besides what the frequency of an integer position is rounded by. Of all
# 2^32 angles that float32 tells apart the worst is wrong by 1.256e-7.
ERROR = {torch.float32: 1.26e-7, torch.float64: 3e-16}
HALF_OF_A_UNIT_OF_TURNS = 2 * math.pi * 2.0**-65


def by_axis_head_and_pair(frequencies: Tensor) -> Tensor:
    """Bring (P,), (A, P) and (A, H, P) to (A, H, P)."""
    matrix = frequencies if frequencies.dim() > 1 else frequencies[None]
    return matrix if matrix.dim() == 3 else matrix[:, None]


def bits_before_the_point(positions: Tensor, frequencies: Tensor) -> int:
    """At least so many as the whole radians of the largest angle have."""
    sizes = (float(factor.double().abs().max()) for factor in (positions, frequencies))
    return max(0, sum(math.frexp(size)[1] for size in sizes)) + 7


def errors(
    tables: tuple[Tensor, Tensor], positions: Tensor, frequencies: Tensor, scale: float = 1.0
) -> Tensor:
    """How far each cosine, or its sine, is from that of the exact angle: the larger distance."""
    cos, sin = tables
    axes, heads, pairs = (matrix := by_axis_head_and_pair(frequencies)).shape
    with mpmath.workprec(BITS + bits_before_the_point(positions, frequencies)):
        radian = 2 * mpmath.pi / 2**64 if frequencies.dtype == torch.int64 else mpmath.mpf(1)
        units = [
            [radian * unit for unit in of_a_pair]
            for of_a_pair in matrix.permute(1, 2, 0).reshape(heads * pairs, axes).tolist()
        ]
        exact = [
            mpmath.cos_sin(mpmath.fdot(zip(position, unit, strict=True)))
            for position in positions.reshape(-1, axes).tolist()
            for unit in units
        ]
        distances = [
            float(max(abs(c - scale * exact_cos), abs(s - scale * exact_sin)))
            for c, s, (exact_cos, exact_sin) in zip(
                cos.flatten().tolist(), sin.flatten().tolist(), exact, strict=True
            )
        ]
    return torch.tensor(distances, dtype=torch.float64, device="cpu").reshape(cos.shape)


def allowed(compute: torch.dtype, positions: Tensor, axis: bool) -> Tensor:
    """How far a cosine or a sine may be from the exact one: a number for each token.

    The frequency of an integer position is rounded to 2^-64 turns, and the position multiplies
    that; products with floating positions are rounded themselves.
    """
    sizes = positions.cpu().double().abs()
    if positions.is_floating_point():
        sizes = torch.ones_like(sizes)
    reach = sizes.sum(-1) if axis else sizes
    return ERROR[compute] + HALF_OF_A_UNIT_OF_TURNS * reach


def assert_exact(tables: tuple[Tensor, Tensor], positions: Tensor, frequencies: Tensor) -> None:
    """Demand cosines and sines of the exact angles, to the errors of ``csrc/core/angle.h``."""
    bound = allowed(tables[0].dtype, positions, frequencies.dim() > 1)
    while bound.dim() < tables[0].dim():
        bound = bound.unsqueeze(-1)
    excess = errors(tables, positions, frequencies) / bound
    assert excess.numel() == 0 or excess.max() <= 1, f"{excess.max()} of what is allowed"


def some_frequencies(*shape: int, seed: int = 6) -> Tensor:
    """Frequencies of a text model, from 1 to 1e-5 radians of either sign, in no order."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") * 5
    signs = torch.randint(0, 2, shape, generator=generator, device="cpu") * 2 - 1
    return (signs * 10**-exponents).to(torch.get_default_device())


def integer_positions(*shape: int, dtype: torch.dtype = torch.int64, seed: int = 7) -> Tensor:
    """Positions of either sign, up to 2^31 - 1 in size."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(1 - 2**31, 2**31, shape, generator=generator, device="cpu")
    return positions.to(dtype).to(torch.get_default_device())


def floating_positions(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 8) -> Tensor:
    """Positions of either sign, up to 1000 in size."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return (positions * 2000 - 1000).to(dtype).to(torch.get_default_device())


@dataclass(frozen=True)
class Form:
    """One accepted form of positions and frequencies."""

    name: str
    build: Callable[[Layout, int, int, int], tuple[Tensor | None, Tensor]]
    needs_leading: bool = False

    def fits(self, layout: Layout) -> bool:
        return bool(layout.leading) or not self.needs_leading

    def __call__(
        self, layout: Layout, tokens: int, heads: int, pairs: int
    ) -> tuple[Tensor | None, Tensor]:
        return self.build(layout, tokens, heads, pairs)


def _one_for(layout: Layout) -> tuple[int, ...]:
    return (1,) * len(layout.leading)


INT32, FLOAT32 = torch.int32, torch.float32

FREQUENCY_FORMS = [
    Form("own index", lambda of, s, h, p: (None, some_frequencies(p))),
    Form("own index on two axes", lambda of, s, h, p: (None, some_frequencies(2, p))),
    Form("own index per head", lambda of, s, h, p: (None, some_frequencies(2, h, p))),
    Form("a position a token", lambda of, s, h, p: (integer_positions(s), some_frequencies(p))),
    Form(
        "int32 positions and float32 frequencies",
        lambda of, s, h, p: (integer_positions(s, dtype=INT32), some_frequencies(p).float()),
    ),
    Form("turns", lambda of, s, h, p: (integer_positions(s), turns(some_frequencies(p)))),
    Form("float64 positions", lambda of, s, h, p: (floating_positions(s), some_frequencies(p))),
    Form(
        "float32 positions and frequencies",
        lambda of, s, h, p: (floating_positions(s, dtype=FLOAT32), some_frequencies(p).float()),
    ),
    Form(
        "positions per batch",
        lambda of, s, h, p: (integer_positions(*of.leading, s), some_frequencies(p)),
        True,
    ),
    Form(
        "one row of positions for the batch",
        lambda of, s, h, p: (integer_positions(*_one_for(of), s), some_frequencies(p)),
        True,
    ),
    Form(
        "positions per last leading dimension",
        lambda of, s, h, p: (floating_positions(*of.leading[-1:], s), some_frequencies(p)),
        True,
    ),
    Form("one axis", lambda of, s, h, p: (integer_positions(s, 1), some_frequencies(1, p))),
    Form("three axes", lambda of, s, h, p: (integer_positions(s, 3), some_frequencies(3, p))),
    Form(
        "two axes per batch",
        lambda of, s, h, p: (
            integer_positions(*of.leading, s, 2, dtype=INT32),
            turns(some_frequencies(2, p)),
        ),
        True,
    ),
    Form(
        "two floating axes per first leading dimension",
        lambda of, s, h, p: (
            floating_positions(*of.leading[:1], *_one_for(of)[1:], s, 2),
            some_frequencies(2, p),
        ),
        True,
    ),
    Form(
        "one head axis for all heads",
        lambda of, s, h, p: (integer_positions(s, 2), some_frequencies(2, 1, p)),
    ),
    Form(
        "frequencies per head",
        lambda of, s, h, p: (integer_positions(s, 2), some_frequencies(2, h, p)),
    ),
    Form(
        "turns per head, positions per batch",
        lambda of, s, h, p: (
            integer_positions(*of.leading, s, 2),
            turns(some_frequencies(2, h, p)),
        ),
        True,
    ),
    Form(
        "frequencies per head at floating positions",
        lambda of, s, h, p: (floating_positions(s, 2), some_frequencies(2, h, p).float()),
    ),
]

FREQUENCY_FORMS_BY_LAYOUT = [
    pytest.param(layout, form, id=f"{layout.name} - {form.name}")
    for layout in LAYOUTS
    for form in FREQUENCY_FORMS
    if form.fits(layout)
]


def positions_of(tokens: int, frequencies: Tensor, positions: Tensor | None) -> Tensor:
    """The positions, or the index of every token, on every axis."""
    if positions is not None:
        return positions
    index = torch.arange(tokens)
    return index if frequencies.dim() == 1 else index[:, None].expand(-1, len(frequencies))


def tables_of(
    layout: Layout, positions: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What ``rope_ext.cos_sin`` makes, as ``rope_ext.rotate`` takes it for this layout."""
    tables = rope_ext.cos_sin(positions, frequencies, scale, dtype)
    if frequencies.dim() < 3:
        return tables
    tokens_heads_pairs = 3
    missing = (1,) * (len(layout.leading) + tokens_heads_pairs - tables[0].dim())
    cos, sin = (table.reshape(*missing, *table.shape) for table in tables)
    return (cos.transpose(-3, -2), sin.transpose(-3, -2)) if layout.seq_dim == -2 else (cos, sin)

"""Inputs for tests: tensors of any strides and tables of any form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

CAPABILITIES = ["scalar", "avx2", "avx512", "avx512_bf16"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def name(value: object) -> str | None:
    """Name a case in a test's id; pytest names the rest."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return getattr(value, "name", None) or getattr(value, "__name__", None)


def _on_the_device(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Move numbers, made on the CPU so that they are the same everywhere, to the default device."""
    return numbers.to(dtype).to(torch.get_default_device())


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return _on_the_device(x, dtype)


def integers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Small integers, whose sums and products are exact in any dtype that holds them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, shape, generator=generator, device="cpu")
    return _on_the_device(x, dtype)


def special(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers of every size that ``dtype`` has, zeros, infinities and NaN."""
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    lowest, highest = math.log2(subnormal) + 1, math.log2(info.max) - 1
    count = math.prod(shape)
    generator = torch.Generator().manual_seed(8)
    exponents = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    x = (2 ** (lowest + exponents * (highest - lowest))).to(dtype)
    x *= torch.randint(0, 2, (count,), generator=generator, device="cpu") * 2 - 1
    values = [0.0, -0.0, subnormal, -info.smallest_normal, info.max, -info.max]
    for place, value in enumerate([*values, math.inf, -math.inf, math.nan]):
        x[place + 5 :: 97] = value
    return _on_the_device(x.reshape(shape), dtype)


def every_number(dtype: torch.dtype) -> Tensor:
    """Every bit pattern of a 16-bit dtype: 16 tokens, 32 heads of 128."""
    numbers = torch.arange(-(2**15), 2**15, device="cpu").to(torch.int16).view(dtype)
    return _on_the_device(numbers.reshape(16, 32, 128), dtype)


def near_halfway(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Ones, and tables whose cosines lie near a halfway case of some 16-bit format."""
    halves = torch.arange(2**16, device="cpu").to(torch.int32) << 16
    near = [0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    cos = halves[:, None] | torch.tensor(near, dtype=torch.int32, device="cpu")
    cos = cos.view(torch.float32).reshape(-1, 128)
    x = torch.zeros(len(cos), 1, 256, dtype=dtype, device="cpu")
    x[..., :128] = 1
    tables = (_on_the_device(table, torch.float32) for table in (cos, torch.zeros_like(cos)))
    return _on_the_device(x, dtype), *tables


def angle_tables(
    *shape: int, dtype: torch.dtype = torch.float32, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """The cosine and sine of random angles over a whole turn."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    angles = turns * 2 * math.pi
    return _on_the_device(angles.cos(), dtype), _on_the_device(angles.sin(), dtype)


def strided(
    x: Tensor,
    *,
    order: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    fill: float = math.nan,
) -> tuple[Tensor, Tensor]:
    """Return a view that equals ``x``, and the larger tensor that it is a slice of.

    Args:
        x: what the view holds.
        order: the dimensions of ``x`` from the outermost to the innermost in memory.
        steps: the step of the slice in each dimension of ``x``.
        padding: how many elements of the larger tensor come before the view in each dimension.
        fill: what the larger tensor holds outside of the view.
    """
    order = list(order or range(x.dim()))
    steps = list(steps or [1] * x.dim())
    padding = list(padding or [0] * x.dim())
    sizes = [pad + size * step for size, step, pad in zip(x.shape, steps, padding, strict=True)]
    base = torch.full([sizes[dim] for dim in order], fill, dtype=x.dtype, device=x.device)
    view = base.permute([order.index(dim) for dim in range(x.dim())])
    view = view[tuple(slice(pad, None, step) for step, pad in zip(steps, padding, strict=True))]
    view.copy_(x)
    return view, base


@dataclass(frozen=True)
class Layout:
    """How tokens, heads and their elements lie in a tensor."""

    name: str
    leading: tuple[int, ...] = (2,)
    seq_dim: int = -3
    flat: bool = False

    def shape(self, tokens: int, heads: int, head_dim: int) -> tuple[int, ...]:
        if self.flat:
            return (*self.leading, tokens, heads * head_dim)
        if self.seq_dim == -2:
            return (*self.leading, heads, tokens, head_dim)
        return (*self.leading, tokens, heads, head_dim)

    def options(self, head_dim: int) -> dict[str, int]:
        return {"head_dim": head_dim} if self.flat else {"seq_dim": self.seq_dim}

    def table_with_heads(
        self, leading: tuple[int, ...], tokens: int, heads: int, pairs: int
    ) -> tuple[int, ...]:
        if self.seq_dim == -2:
            return (*leading, heads, tokens, pairs)
        return (*leading, tokens, heads, pairs)


LAYOUTS = [
    Layout("BSHD"),
    Layout("BHSD", seq_dim=-2),
    Layout("THD", leading=()),
    Layout("HTD", leading=(), seq_dim=-2),
    Layout("two leading, tokens first", leading=(2, 3)),
    Layout("two leading, heads first", leading=(2, 3), seq_dim=-2),
    Layout("three leading", leading=(2, 1, 3)),
    Layout("flat", flat=True),
    Layout("flat without batch", leading=(), flat=True),
    Layout("flat with two leading", leading=(3, 2), flat=True),
]


@dataclass(frozen=True)
class Angles:
    """One accepted form of tables, with or without positions."""

    name: str
    build: Callable[[Layout, int, int, int], tuple[tuple[int, ...], Tensor | None]]
    needs_leading: bool = False

    def fits(self, layout: Layout) -> bool:
        return bool(layout.leading) or not self.needs_leading

    def __call__(
        self, layout: Layout, tokens: int, heads: int, pairs: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        shape, positions = self.build(layout, tokens, heads, pairs)
        return (*angle_tables(*shape, dtype=dtype), positions)


ROWS = 11


def token_positions(*shape: int, dtype: torch.dtype = torch.int64, seed: int = 2) -> Tensor:
    """Positions in [0, ROWS) in no order, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, ROWS, shape, generator=generator, device="cpu")
    return _on_the_device(positions, dtype)


def _one_for(layout: Layout) -> tuple[int, ...]:
    return (1,) * len(layout.leading)


ANGLES = [
    Angles("a row per token", lambda of, s, h, p: ((s, p), None)),
    Angles("more rows than tokens", lambda of, s, h, p: ((s + 3, p), None)),
    Angles("a table per batch", lambda of, s, h, p: ((*of.leading, s, p), None), True),
    Angles("one table for the batch", lambda of, s, h, p: ((*_one_for(of), s, p), None), True),
    Angles(
        "a table per last leading dimension",
        lambda of, s, h, p: ((*of.leading[-1:], s, p), None),
        True,
    ),
    Angles(
        "a table per first leading dimension",
        lambda of, s, h, p: ((*of.leading[:1], *_one_for(of)[1:], s, p), None),
        True,
    ),
    Angles(
        "a table per head",
        lambda of, s, h, p: (of.table_with_heads(_one_for(of), s, h, p), None),
    ),
    Angles(
        "a table per batch and head",
        lambda of, s, h, p: (of.table_with_heads(of.leading, s, h, p), None),
    ),
    Angles(
        "one head axis for all heads",
        lambda of, s, h, p: (of.table_with_heads(of.leading, s, 1, p), None),
    ),
    Angles("positions", lambda of, s, h, p: ((ROWS, p), token_positions(s))),
    Angles(
        "int32 positions", lambda of, s, h, p: ((ROWS, p), token_positions(s, dtype=torch.int32))
    ),
    Angles(
        "positions per batch",
        lambda of, s, h, p: ((ROWS, p), token_positions(*of.leading, s)),
        True,
    ),
    Angles(
        "int32 positions per batch",
        lambda of, s, h, p: ((ROWS, p), token_positions(*of.leading, s, dtype=torch.int32)),
        True,
    ),
    Angles(
        "one row of positions for the batch",
        lambda of, s, h, p: ((ROWS, p), token_positions(*_one_for(of), s)),
        True,
    ),
    Angles(
        "positions per last leading dimension",
        lambda of, s, h, p: ((ROWS, p), token_positions(*of.leading[-1:], s)),
        True,
    ),
]

FORMS = [
    pytest.param(layout, angles, id=f"{layout.name} - {angles.name}")
    for layout in LAYOUTS
    for angles in ANGLES
    if angles.fits(layout)
]

"""Any accepted call against the reference, and what holds for every rotation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from inputs import DTYPES, angle_tables, normal, strided
from tolerance import COMPUTE, assert_rotated, assert_same_bits, bits
from torch import Tensor

import rope_ext
from rope_ext import frequencies

pytestmark = pytest.mark.usefixtures("device")

EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


@st.composite
def slices(draw: st.DrawFn, x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` as a slice, of any order, steps and offsets, of a larger tensor; and that tensor."""
    dims = range(x.dim())
    fill = math.nan if x.is_floating_point() else -1
    return strided(
        x,
        order=draw(st.permutations(dims)),
        steps=[draw(st.integers(1, 3)) for _ in dims],
        padding=[draw(st.integers(0, 3)) for _ in dims],
        fill=fill,
    )


@st.composite
def broadcastable(draw: st.DrawFn, leading: tuple[int, ...], full: bool = False) -> tuple[int, ...]:
    """A shape that broadcasts to ``leading``, with as many dimensions if ``full``."""
    skipped = 0 if full else draw(st.integers(0, len(leading)))
    return tuple(draw(st.sampled_from([1, size])) for size in leading[skipped:])


@st.composite
def calls(draw: st.DrawFn) -> dict[str, object]:
    """Every argument of ``apply_``, within the contract."""
    dtype = draw(st.sampled_from(DTYPES))
    leading = tuple(draw(st.lists(st.integers(0, 3) | st.integers(1, 3), max_size=3)))
    tokens, heads = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    pairs = draw(st.integers(0, 40))
    start = draw(st.integers(0, 9))
    head_dim = start + 2 * pairs + draw(st.integers(0, 9)) or 1
    layout = draw(st.sampled_from(["tokens first", "heads first", "flat"]))

    def data(heads: int) -> Tensor:
        shape = {
            "tokens first": (*leading, tokens, heads, head_dim),
            "heads first": (*leading, heads, tokens, head_dim),
            "flat": (*leading, tokens, heads * head_dim),
        }[layout]
        return normal(*shape, dtype=dtype, seed=draw(st.integers(0, 99)))

    rotated_heads = draw(st.none() | st.integers(0, heads))
    table_heads = heads if rotated_heads is None else rotated_heads
    form = draw(st.sampled_from(["rows", "positions", "batch", "heads"]))
    key_heads = table_heads if form == "heads" else draw(st.integers(1, 4))
    positions = None
    if form == "rows":
        shape = (tokens + draw(st.integers(0, 3)), pairs)
    elif form == "positions":
        rows = draw(st.integers(1, 9))
        shape = (rows, pairs)
        position_shape = (*draw(broadcastable(leading)), tokens)
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        positions = torch.randint(0, rows, position_shape, generator=generator)
        positions = positions.to(draw(st.sampled_from([torch.int32, torch.int64])))
    elif form == "batch":
        shape = (*draw(broadcastable(leading)), tokens, pairs)
    else:
        axes = (tokens, draw(st.sampled_from([1, table_heads])))
        axes = axes[::-1] if layout == "heads first" else axes
        shape = (*draw(broadcastable(leading, full=True)), *axes, pairs)
    table_dtype = draw(st.sampled_from([torch.float32, torch.float64, dtype]))
    cos, sin = angle_tables(*shape, dtype=table_dtype, seed=draw(st.integers(0, 99)))

    options: dict[str, object] = {
        "num_heads": rotated_heads,
        "start": start,
        "interleaved": draw(st.booleans()),
        "inverse": draw(st.booleans()),
    }
    if layout == "flat":
        options["head_dim"] = head_dim
    else:
        options["seq_dim"] = -2 if layout == "heads first" else -3
    return {
        "query": draw(slices(data(heads))),
        "key": draw(st.none() | slices(data(key_heads))),
        "cos": draw(slices(cos))[0],
        "sin": draw(slices(sin))[0],
        "positions": None if positions is None else draw(slices(positions))[0],
        "options": options,
    }


@given(calls())
def test_any_call_rotates_as_the_reference_says_and_spares_the_rest(call):
    angles = call["cos"], call["sin"], call["positions"]
    options = call["options"]
    query, query_base = call["query"]
    key, key_base = call["key"] or (None, None)
    key_options = {k: v for k, v in options.items() if k != "num_heads"}

    old_query, old_key = query.clone(), None if key is None else key.clone()
    old_bases = [None if base is None else base.clone() for base in (query_base, key_base)]
    functional = rope_ext.rotate(query, *angles, **options)
    assert_rotated(functional, old_query, *angles, **options)
    assert torch.equal(bits(query_base), bits(old_bases[0]))

    rope_ext.apply_(query, key, *angles, **options)
    assert_same_bits(query, functional)
    if key is not None:
        assert_rotated(key, old_key, *angles, **key_options)
    for view, base, old_base in zip((query, key), (query_base, key_base), old_bases, strict=True):
        if base is not None:
            view.fill_(math.nan)
            outside = ~(base.isnan() & ~old_base.isnan()) & ~old_base.isnan()
            assert not outside.any()


@dataclass(frozen=True)
class Window:
    """A view of some memory at any strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int

    def of(self, memory: Tensor) -> Tensor:
        return memory.as_strided(self.shape, self.strides, self.first)

    @property
    def places(self) -> Tensor:
        """The index in memory of every element."""
        return self.of(torch.arange(256)).flatten()

    @property
    def overlaps_itself(self) -> bool:
        return len(self.places.unique()) < self.places.numel()

    def overlaps(self, other: Window) -> bool:
        return bool(torch.isin(self.places, other.places).any())


@st.composite
def windows(draw: st.DrawFn, *sizes: int | None) -> Window:
    """A window of these sizes, where known, within 256 elements: nested dimensions or any."""
    shape = tuple(draw(st.integers(1, 4)) if size is None else size for size in sizes)
    strides = [draw(st.integers(0, 20)) for _ in shape]
    if draw(st.booleans()):
        reach = draw(st.integers(1, 2))
        for dim in draw(st.permutations(range(len(shape)))):
            strides[dim] = reach
            reach = reach * shape[dim] + draw(st.integers(0, 3))
    return Window(shape, tuple(strides), draw(st.integers(0, 40)))


def assert_overlap_is_refused_and_nothing_else(
    overlap: bool, memory: Tensor, query: Tensor, key: Tensor | None, cos: Tensor, sin: Tensor
) -> None:
    before, old_query = memory.clone(), query.clone()
    old_key = None if key is None else key.clone()
    if overlap:
        with pytest.raises(ValueError, match="overlap"):
            rope_ext.apply_(query, key, cos, sin)
        assert_same_bits(memory, before)
    else:
        rope_ext.apply_(query, key, cos, sin)
        assert_rotated(query, old_query, cos, sin)
        if key is not None:
            assert_rotated(key, old_key, cos, sin)


@given(windows(None, None, 4))
def test_a_query_that_overlaps_itself_is_refused_and_no_other(window):
    memory = normal(256)
    query = window.of(memory)
    tables = angle_tables(len(query), 2)
    assert_overlap_is_refused_and_nothing_else(window.overlaps_itself, memory, query, None, *tables)


@given(windows(3, None, 4), windows(3, None, 4))
def test_a_query_and_a_key_that_overlap_are_refused_and_no_others(window, other):
    memory = normal(256)
    query, key = window.of(memory), other.of(memory)
    overlap = window.overlaps_itself or other.overlaps_itself or window.overlaps(other)
    assert_overlap_is_refused_and_nothing_else(overlap, memory, query, key, *angle_tables(3, 2))


@given(windows(3, None, 4), windows(3, 2))
def test_a_query_and_a_table_that_overlap_are_refused_and_no_others(window, other):
    memory = normal(256)
    cos, sin = other.of(memory), normal(3, 2, seed=1)
    query = window.of(memory)
    overlap = window.overlaps_itself or window.overlaps(other)
    assert_overlap_is_refused_and_nothing_else(overlap, memory, query, None, cos, sin)
    assert_overlap_is_refused_and_nothing_else(overlap, memory, query, None, sin, cos)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(1, 40))
seeds = st.integers(0, 999)


@given(shapes, seeds, st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_a_batch_gives_the_bits_of_its_rows(shape, seed, dtype, interleaved, heads_first):
    batch, tokens, heads, pairs = shape
    x = normal(batch, tokens, heads, 2 * pairs, dtype=dtype, seed=seed)
    seq_dim = -3
    if heads_first:
        x, seq_dim = x.transpose(1, 2), -2
    cos, sin = angle_tables(tokens, pairs, seed=seed)
    options = {"seq_dim": seq_dim, "interleaved": interleaved}
    whole = rope_ext.rotate(x, cos, sin, **options)
    rows = torch.stack([rope_ext.rotate(row, cos, sin, **options) for row in x])
    assert_same_bits(whole, rows)


@given(shapes, seeds, st.sampled_from(DTYPES), st.booleans())
def test_a_sequence_gives_the_bits_of_its_tokens(shape, seed, dtype, interleaved):
    batch, tokens, heads, pairs = shape
    x = normal(batch, tokens, heads, 2 * pairs, dtype=dtype, seed=seed)
    cos, sin = angle_tables(tokens, pairs, seed=seed)
    whole = rope_ext.rotate(x, cos, sin, interleaved=interleaved)
    for token in range(tokens):
        alone = rope_ext.rotate(
            x[:, token : token + 1], cos, sin, torch.tensor([token]), interleaved=interleaved
        )
        assert_same_bits(whole[:, token : token + 1], alone)


@given(shapes, seeds, st.sampled_from(DTYPES), st.booleans())
def test_inverse_undoes_rotation(shape, seed, dtype, interleaved):
    batch, tokens, heads, pairs = shape
    x = normal(batch, tokens, heads, 2 * pairs, dtype=dtype, seed=seed)
    tables = angle_tables(tokens, pairs, dtype=COMPUTE[dtype], seed=seed)
    there = rope_ext.rotate(x, *tables, interleaved=interleaved)
    back = rope_ext.rotate(there, *tables, interleaved=interleaved, inverse=True)
    length = pair_lengths(x, interleaved)
    error = pair_lengths(back.double() - x.double(), interleaved)
    # Each way rounds both coordinates to the storage type, half an eps of at most the length:
    # sqrt(2) * eps / 2 of it for the pair. The compute type adds as much, and its tables one eps.
    allowed = 2 * math.sqrt(2) * (EPS[dtype] / 2 + EPS[COMPUTE[dtype]]) + EPS[COMPUTE[dtype]]
    assert (error <= allowed * (1 + EPS[dtype]) * length + smallest(dtype)).all()


@given(shapes, seeds, st.sampled_from(DTYPES), st.booleans())
def test_rotation_keeps_the_length_of_every_pair(shape, seed, dtype, interleaved):
    batch, tokens, heads, pairs = shape
    x = normal(batch, tokens, heads, 2 * pairs, dtype=dtype, seed=seed)
    tables = angle_tables(tokens, pairs, dtype=COMPUTE[dtype], seed=seed)
    turned = rope_ext.rotate(x, *tables, interleaved=interleaved)
    before, after = pair_lengths(x, interleaved), pair_lengths(turned, interleaved)
    allowed = math.sqrt(2) * (EPS[dtype] / 2 + EPS[COMPUTE[dtype]]) + EPS[COMPUTE[dtype]]
    assert ((after - before).abs() <= allowed * before + smallest(dtype)).all()


@given(st.integers(1, 40), seeds, st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 9999))
def test_scores_depend_on_the_difference_of_positions_alone(pairs, seed, here, there, shift):
    query = normal(1, 1, 2 * pairs, dtype=torch.float64, seed=seed)
    key = normal(1, 1, 2 * pairs, dtype=torch.float64, seed=seed + 1)
    freqs = frequencies.standard(2 * pairs)

    def score(query_position: int, key_position: int) -> Tensor:
        turned = [
            rope_ext.rotate(x, *frequencies.tables(torch.tensor([position]), freqs, torch.float64))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return (turned[0] * turned[1]).sum()

    # An angle is wrong by half an eps of itself; each of the scores adds 2 * pairs products.
    largest_angle = max(here, there) + shift
    scale = query.norm() * key.norm()
    allowed = EPS[torch.float64] * (2 * largest_angle + 4 * pairs + 8) * scale
    assert (score(here, there) - score(here + shift, there + shift)).abs() <= allowed


def pair_lengths(x: Tensor, interleaved: bool) -> Tensor:
    """The length of every pair of a fully rotated tensor, in float64."""
    x = x.double()
    if interleaved:
        return torch.hypot(x[..., 0::2], x[..., 1::2])
    pairs = x.shape[-1] // 2
    return torch.hypot(x[..., :pairs], x[..., pairs:])


def smallest(dtype: torch.dtype) -> float:
    """The spacing of subnormal numbers, below which no error is relative."""
    return 2 * EPS[dtype] * torch.finfo(dtype).smallest_normal

"""Any call by positions and frequencies, and what relative positions mean."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from angles import (
    ERROR,
    HALF_OF_A_UNIT_OF_TURNS,
    floating_positions,
    integer_positions,
    positions_of,
    some_frequencies,
    tables_of,
)
from hypothesis import assume, given
from inputs import DTYPES, Layout, normal
from test_properties import EPS, broadcastable, pair_lengths, seeds, shapes, slices, smallest
from tolerance import COMPUTE, assert_same_bits, bits
from torch import Tensor

import rope_ext
from rope_ext.frequencies import standard, turns


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    seq_dim, is_flat = draw(st.sampled_from([(-3, False), (-2, False), (-3, True)]))
    return Layout("any", leading, seq_dim, is_flat)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, object]:
    """Every argument of ``apply_frequencies_``, within the contract."""
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(layouts())
    tokens, heads = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    pairs, start = draw(st.integers(1, 40)), draw(st.integers(0, 9))
    head_dim = start + 2 * pairs + draw(st.integers(0, 9))
    num_heads = draw(st.none() | st.integers(1, heads))
    rotated = heads if num_heads is None else num_heads

    seed = draw(seeds)
    matrix = draw(st.sampled_from(["pairs", "axes", "one head", "heads"]))
    axes = draw(st.integers(1, 4))
    own = {"pairs": (), "axes": (axes,), "one head": (axes, 1), "heads": (axes, rotated)}[matrix]
    frequencies = some_frequencies(*own, pairs, seed=seed)
    shape = (*draw(broadcastable(layout.leading)), tokens, *own[:1])
    kind = draw(st.sampled_from([None, torch.int32, torch.int64, torch.float32, torch.float64]))
    positions = None
    if kind is not None:
        drawn = floating_positions if kind.is_floating_point else integer_positions
        positions = draw(slices(drawn(*shape, dtype=kind, seed=seed)))[0]
    fixed = kind is None or not kind.is_floating_point
    convert = draw(st.sampled_from([Tensor.double, Tensor.float, *([turns] if fixed else [])]))

    def data(heads: int, seed: int) -> Tensor:
        return normal(*layout.shape(tokens, heads, head_dim), dtype=dtype, seed=seed)

    key_heads = rotated if matrix == "heads" else draw(st.integers(1, 4))
    return {
        "layout": layout,
        "query": draw(slices(data(heads, seed))),
        "key": draw(st.none() | slices(data(key_heads, seed + 1))),
        "positions": positions,
        "frequencies": draw(slices(convert(frequencies)))[0],
        "scale": draw(st.sampled_from([1.0, 1.25, -0.7])),
        "num_heads": num_heads,
        "options": {
            **layout.options(head_dim),
            "start": start,
            "interleaved": draw(st.booleans()),
            "inverse": draw(st.booleans()),
        },
    }


@given(calls())
def test_any_call_has_the_bits_of_one_with_tables_and_spares_the_rest(call):
    layout, options, num_heads = call["layout"], call["options"], call["num_heads"]
    angles = call["positions"], call["frequencies"], call["scale"]
    query, query_base = call["query"]
    key, key_base = call["key"] or (None, None)
    tokens = query.shape[-2] if layout.flat else query.shape[layout.seq_dim]
    of_tokens = positions_of(tokens, call["frequencies"], call["positions"])
    tables = tables_of(layout, of_tokens, call["frequencies"], call["scale"], COMPUTE[query.dtype])
    expected = [rope_ext.rotate(query, *tables, num_heads=num_heads, **options)]
    if key is not None:
        expected.append(rope_ext.rotate(key, *tables, **options))

    old_bases = [None if base is None else base.clone() for base in (query_base, key_base)]
    functional = rope_ext.rotate_frequencies(query, *angles, num_heads=num_heads, **options)
    assert_same_bits(functional, expected[0])
    assert torch.equal(bits(query_base), bits(old_bases[0]))
    rope_ext.apply_frequencies_(query, key, *angles, num_heads=num_heads, **options)
    for view, base, whole in zip((query, key), (query_base, key_base), expected, strict=False):
        assert_same_bits(view, whole)
        view.fill_(math.nan)
        assert base.isnan().all()


positions_in_a_long_text = st.integers(-(2**30), 2**30)


@given(
    st.integers(1, 40),
    seeds,
    st.sampled_from([torch.float32, torch.float64]),
    st.lists(st.tuples(*[positions_in_a_long_text] * 3), min_size=1, max_size=3),
)
def test_scores_depend_on_the_difference_of_positions_alone(pairs, seed, dtype, axes):
    """On every axis, at any offset: an angle is the same fraction of a turn wherever it starts."""
    query, key = (normal(1, 1, 2 * pairs, dtype=dtype, seed=seed + i) for i in range(2))
    frequencies = some_frequencies(len(axes), pairs, seed=seed)
    here, there, shift = (torch.tensor([coordinates]) for coordinates in zip(*axes, strict=True))

    def score(query_position: Tensor, key_position: Tensor) -> Tensor:
        turned = [
            rope_ext.rotate_frequencies(x, position, frequencies).double()
            for x, position in ((query, query_position), (key, key_position))
        ]
        return (turned[0] * turned[1]).sum()

    # A turned pair is wrong by sqrt(2) times the error of cosine and sine, and by two roundings of
    # each coordinate: sqrt(2) * eps. Two of them meet in each of two scores.
    of_a_vector = math.sqrt(2) * (ERROR[dtype] + EPS[dtype])
    of_a_sum = 2 * pairs * EPS[torch.float64]
    allowed = 2 * (2 * of_a_vector + of_a_sum) * query.double().norm() * key.double().norm()
    assert dtype == torch.float32 or allowed < 1e-11
    assert (score(here, there) - score(here + shift, there + shift)).abs() <= allowed


@given(st.integers(1, 20), seeds, st.integers(0, 2**30), st.integers(1, 2**30), st.booleans())
def test_a_score_is_that_of_one_token_turned_by_the_difference(
    pairs, seed, position, distance, interleaved
):
    query, key = (normal(1, 1, 2 * pairs, dtype=torch.float64, seed=seed + i) for i in range(2))
    frequencies = standard(2 * pairs)

    def turned(x: Tensor, at: int) -> Tensor:
        return rope_ext.rotate_frequencies(
            x, torch.tensor([at]), frequencies, interleaved=interleaved
        )

    both = (turned(query, position + distance) * turned(key, position)).sum()
    one = (turned(query, distance) * key).sum()
    scale = query.norm() * key.norm()
    error = math.sqrt(2) * (ERROR[torch.float64] + EPS[torch.float64])
    assert (both - one).abs() <= (3 * error + 4 * pairs * EPS[torch.float64]) * scale


@given(
    st.integers(2, 64),
    st.sampled_from([1e2, 1e4, 5e5, 1e7]),
    st.lists(st.integers(1, 2**20), min_size=2, max_size=8, unique=True),
)
def test_near_tokens_turn_less_than_far_ones(pairs, base, distances):
    """In pairs so slow that they do not make half a turn; their similarity falls with distance."""
    positions = torch.tensor([0, *sorted(distances)])
    frequencies = standard(2 * pairs, base)
    slow = frequencies[frequencies * positions.max() < math.pi]
    assume(len(slow) > 0)
    cos, sin = rope_ext.cos_sin(positions, slow, dtype=torch.float64)
    turned = torch.atan2(sin, cos)
    steps = positions.diff()[:, None] * slow
    # The rest of two errors in cosine and sine, in the frequency, and of atan2 itself.
    error = 4 * (ERROR[torch.float64] + EPS[torch.float64] * math.pi)
    error += HALF_OF_A_UNIT_OF_TURNS * 2**21
    assert ((turned.diff(dim=0) - steps).abs() <= error).all()
    further = steps > error
    assert (turned.diff(dim=0)[further] > 0).all()

    token = normal(1, 1, 2 * len(slow), dtype=torch.float64)
    copies = token.expand(len(positions), 1, -1)
    similarity = (rope_ext.rotate_frequencies(copies, positions, slow) * token).sum((1, 2))
    assert (similarity.diff() <= 1e-13 * (token * token).sum()).all()


@given(shapes, seeds, st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_inverse_undoes_rotation(shape, seed, dtype, interleaved, floating):
    batch, tokens, heads, pairs = shape
    x = normal(batch, tokens, heads, 2 * pairs, dtype=dtype, seed=seed)
    places = floating_positions if floating else integer_positions
    angles = places(batch, tokens, seed=seed), some_frequencies(pairs, seed=seed)
    there = rope_ext.rotate_frequencies(x, *angles, interleaved=interleaved)
    back = rope_ext.rotate_frequencies(there, *angles, interleaved=interleaved, inverse=True)
    error = pair_lengths(back.double() - x.double(), interleaved)
    # Each way rounds both coordinates to the storage and to the compute type. Cosine and sine are
    # the same numbers both ways, of a length that is 1 but for sqrt(2) times their error, twice.
    compute = COMPUTE[dtype]
    allowed = 2 * math.sqrt(2) * (EPS[dtype] / 2 + EPS[compute] + ERROR[compute])
    length = pair_lengths(x, interleaved)
    assert (error <= allowed * (1 + EPS[dtype]) * length + smallest(dtype)).all()


@given(shapes, seeds, st.sampled_from(DTYPES), st.booleans())
def test_a_batch_gives_the_bits_of_its_rows_and_its_tokens(shape, seed, dtype, floating):
    batch, tokens, heads, pairs = shape
    x = normal(batch, tokens, heads, 2 * pairs, dtype=dtype, seed=seed)
    places = floating_positions if floating else integer_positions
    positions = places(batch, tokens, 2, seed=seed)
    frequencies = some_frequencies(2, heads, pairs, seed=seed)
    whole = rope_ext.rotate_frequencies(x, positions, frequencies)
    for row, of_row, alone in zip(whole, positions, x, strict=True):
        assert_same_bits(rope_ext.rotate_frequencies(alone, of_row, frequencies), row)
        for token in range(tokens):
            place = slice(token, token + 1)
            one = rope_ext.rotate_frequencies(alone[place], of_row[place], frequencies)
            assert_same_bits(one, row[place])


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    seeds,
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_packed_sequences_have_the_bits_of_padded_ones(lengths, seed, dtype, interleaved):
    """Tokens of many sequences one behind the other, each with its own position."""
    longest, frequencies = max(lengths), some_frequencies(9, seed=seed)
    padded = normal(len(lengths), longest, 2, 18, dtype=dtype, seed=seed)
    positions = integer_positions(len(lengths), longest, seed=seed)
    valid = torch.arange(longest) < torch.tensor(lengths)[:, None]
    options = {"interleaved": interleaved}
    whole = rope_ext.rotate_frequencies(padded, positions, frequencies, **options)
    packed = rope_ext.rotate_frequencies(padded[valid], positions[valid], frequencies, **options)
    assert_same_bits(packed, whole[valid])

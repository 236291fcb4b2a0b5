"""Angles made of positions and frequencies, against mpmath: exact modulo one turn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import hypothesis.strategies as st
import mpmath
import pytest
import torch
from angles import (
    BITS,
    FREQUENCY_FORMS_BY_LAYOUT,
    Form,
    allowed,
    assert_exact,
    errors,
    floating_positions,
    integer_positions,
    positions_of,
    some_frequencies,
)
from hypothesis import given
from inputs import Layout, name, normal, strided
from tolerance import assert_same_bits
from torch import Tensor

import rope_ext
from rope_ext.frequencies import standard, turns

COMPUTE = [torch.float32, torch.float64]
GOLDEN = json.loads((Path(__file__).parent / "golden/exact_cos_sin.json").read_text())["cases"]

computed = pytest.mark.parametrize("dtype", COMPUTE, ids=name)


@computed
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_recorded_angles_are_reproduced(case: dict, dtype: torch.dtype):
    frequencies = torch.tensor(list(map(float.fromhex, case["inv_freq"])), dtype=torch.float64)
    positions = torch.tensor([case["position"]])
    tables = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
    with mpmath.workprec(BITS):
        distances = [
            abs(actual - mpmath.mpf(exact))
            for table, recorded in zip(tables, (case["cos"], case["sin"]), strict=True)
            for actual, exact in zip(table.flatten().tolist(), recorded, strict=True)
        ]
    worst = float(max(distances))
    assert worst <= allowed(dtype, positions, axis=False)
    # The golden file and the oracle of all other tests agree.
    assert errors(tables, positions, frequencies).max() == pytest.approx(worst, abs=1e-19)


def test_the_errors_of_the_contract_are_kept():
    """1e-6 for 16 bits and 2.5e-7 for float32 up to 2^31; 5e-7 up to 2^24 turns."""
    ends = torch.tensor([2**31, 2**31 - 1, 2**24 + 1, 2**16 - 1, 1, 0])
    positions = torch.cat((ends, -ends, integer_positions(20)))
    frequencies = torch.cat((standard(32), some_frequencies(8)))
    for compute, error in ((torch.float32, 2.5e-7), (torch.float64, 1e-14)):
        tables = rope_ext.cos_sin(positions, frequencies, dtype=compute)
        distances = errors(tables, positions, frequencies).amax(1)
        assert (distances <= error + 2e-19 * positions.abs()).all()

    many_turns = torch.tensor([2.0**24, -(2.0**24), 1e6, -0.3], dtype=torch.float64) * 2 * math.pi
    tables = rope_ext.cos_sin(many_turns, frequencies)
    assert errors(tables, many_turns, frequencies).max() <= 5e-7


@computed
@pytest.mark.parametrize("reach", [2**10, 2**31, 2**40], ids=["2^10", "2^31", "2^40"])
def test_integer_positions_give_exact_angles(reach: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(-reach, reach + 1, (150,), generator=generator)
    frequencies = some_frequencies(20)
    assert_exact(rope_ext.cos_sin(positions, frequencies, dtype=dtype), positions, frequencies)


@computed
@pytest.mark.parametrize("position_dtype", COMPUTE, ids=name)
@pytest.mark.parametrize(
    "reach", [1.0, 1e4, 2.0**24 * 2 * math.pi, 1e12], ids=["1", "1e4", "2^24 turns", "1e12"]
)
def test_floating_positions_give_exact_angles(
    reach: float, position_dtype: torch.dtype, dtype: torch.dtype
):
    positions = (floating_positions(150) * (reach / 1000)).to(position_dtype)
    frequencies = some_frequencies(20)
    assert_exact(rope_ext.cos_sin(positions, frequencies, dtype=dtype), positions, frequencies)


@pytest.mark.parametrize(("layout", "form"), FREQUENCY_FORMS_BY_LAYOUT)
def test_tables_of_every_form_are_exact(layout: Layout, form: Form):
    tokens, heads, pairs = 3, 3, 5
    positions, frequencies = form(layout, tokens, heads, pairs)
    positions = positions_of(tokens, frequencies, positions)
    cos, sin = rope_ext.cos_sin(positions, frequencies)
    leading = positions.shape if frequencies.dim() == 1 else positions.shape[:-1]
    assert (
        cos.shape == sin.shape == (*leading, *frequencies.shape[1:][-2:-1], frequencies.shape[-1])
    )
    assert_exact((cos, sin), positions, frequencies)


any_integer = st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**33), 2**33)
any_float32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
any_float64 = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def matrices(draw: st.DrawFn, *shape: int, elements: st.SearchStrategy, dtype: torch.dtype):
    count = math.prod(shape)
    values = draw(st.lists(elements, min_size=count, max_size=count))
    return torch.tensor(values, dtype=dtype).reshape(shape)


@st.composite
def frequencies_of_any_size(draw: st.DrawFn, *shape: int, fixed: bool) -> Tensor:
    kinds = [(any_float32, torch.float32), (any_float64, torch.float64)]
    if fixed:
        kinds.append((st.integers(-(2**63), 2**63 - 1), torch.int64))
    elements, dtype = draw(st.sampled_from(kinds))
    return draw(matrices(*shape, elements=elements, dtype=dtype))


counts = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))


@given(st.data(), counts, st.sampled_from(COMPUTE))
def test_any_integer_positions_and_any_frequencies_give_exact_angles(data, count, dtype):
    """Over the whole of int64 a frequency's own rounding is all that is left: up to half a turn."""
    tokens, axes, heads, pairs = count
    positions = data.draw(
        matrices(tokens, axes, elements=any_integer, dtype=torch.int64)
        | matrices(tokens, axes, elements=st.integers(-(2**31), 2**31 - 1), dtype=torch.int32)
    )
    frequencies = data.draw(frequencies_of_any_size(axes, heads, pairs, fixed=True))
    assert_exact(rope_ext.cos_sin(positions, frequencies, dtype=dtype), positions, frequencies)


@given(st.data(), counts, st.sampled_from(COMPUTE))
def test_any_floating_positions_and_any_frequencies_give_exact_angles(data, count, dtype):
    """Even where the product is beyond float64: of 1e308 radians at 1e308 every turn is known."""
    tokens, axes, heads, pairs = count
    positions = data.draw(
        matrices(tokens, axes, elements=any_float32, dtype=torch.float32)
        | matrices(tokens, axes, elements=any_float64, dtype=torch.float64)
    )
    frequencies = data.draw(frequencies_of_any_size(axes, heads, pairs, fixed=False))
    assert_exact(rope_ext.cos_sin(positions, frequencies, dtype=dtype), positions, frequencies)


@given(st.data(), st.integers(1, 4))
def test_turns_turn_by_themselves_without_any_error(data, axes):
    """Multiples of 2^-32 turns: all that a float32 angle is made of, and no rounding before it."""
    whole = st.integers(-(2**31), 2**31 - 1)
    frequencies = data.draw(matrices(axes, 3, elements=whole, dtype=torch.int64)) << 32
    positions = data.draw(matrices(2, axes, elements=any_integer, dtype=torch.int64))
    sums = [
        [
            sum(p * f for p, f in zip(position, column, strict=True))
            for column in frequencies.t().tolist()
        ]
        for position in positions.tolist()
    ]
    wrapped = [[(turn + 2**63) % 2**64 - 2**63 for turn in row] for row in sums]
    for dtype in COMPUTE:
        actual = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
        for row, turn in enumerate(wrapped):
            expected = rope_ext.cos_sin(torch.tensor([1]), torch.tensor(turn), dtype=dtype)
            for table, one in zip(actual, expected, strict=True):
                assert_same_bits(table[row], one[0])


@computed
def test_multiples_of_a_quarter_turn_are_exact(dtype: torch.dtype):
    positions = torch.tensor([0, 1, 2, 3, 4, -1, -2, -3, 2**31 - 1, -(2**63), 2**63 - 1])
    cos, sin = rope_ext.cos_sin(positions, torch.tensor([2**62]), dtype=dtype)
    assert cos.flatten().tolist() == [1, 0, -1, 0, 1, 0, -1, 0, 0, 1, 0]
    assert sin.flatten().tolist() == [0, 1, 0, -1, 0, -1, 0, 1, -1, 0, -1]


@computed
def test_opposite_positions_on_two_axes_cancel(dtype: torch.dtype):
    frequencies = some_frequencies(1, 7).expand(2, 7)
    for positions in (integer_positions(9, 1), floating_positions(9, 1)):
        opposite = torch.cat((positions, -positions), dim=1)
        cos, sin = rope_ext.cos_sin(opposite, frequencies, dtype=dtype)
        assert (cos == 1).all()
        assert (sin == 0).all()


@computed
def test_an_axis_of_frequency_zero_does_not_count(dtype: torch.dtype):
    frequencies = some_frequencies(1, 7)
    for positions in (integer_positions(9, 2), floating_positions(9, 2)):
        both = torch.cat((frequencies, torch.zeros(1, 7, dtype=torch.float64)))
        expected = rope_ext.cos_sin(positions[:, :1], frequencies, dtype=dtype)
        for table, alone in zip(
            rope_ext.cos_sin(positions, both, dtype=dtype), expected, strict=True
        ):
            assert_same_bits(table, alone)


@computed
def test_sixty_four_axes_sum(dtype: torch.dtype):
    frequencies = some_frequencies(64, 2, 70)
    for positions in (integer_positions(2, 64) // 64, floating_positions(2, 64)):
        tables = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
        assert_exact(tables, positions, frequencies)


@computed
def test_turns_give_the_bits_of_radians(dtype: torch.dtype):
    frequencies = torch.cat((standard(128), some_frequencies(6), torch.tensor([0.0, 1e9, 2.0**63])))
    positions = integer_positions(50)
    for radians in (frequencies, frequencies.float()):
        by_radians = rope_ext.cos_sin(positions, radians, dtype=dtype)
        by_turns = rope_ext.cos_sin(positions, turns(radians), dtype=dtype)
        for one, other in zip(by_radians, by_turns, strict=True):
            assert_same_bits(one, other)


@computed
def test_a_dtype_of_positions_or_frequencies_does_not_change_a_bit(dtype: torch.dtype):
    frequencies = some_frequencies(9).float()
    for positions, narrow in (
        (integer_positions(20), torch.int32),
        (floating_positions(20).float(), torch.float64),
    ):
        one = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
        other = rope_ext.cos_sin(positions.to(narrow), frequencies.double(), dtype=dtype)
        for table, same in zip(one, other, strict=True):
            assert_same_bits(table, same)


@computed
def test_positions_and_frequencies_may_have_any_strides(dtype: torch.dtype):
    frequencies, order = some_frequencies(2, 3, 9), ((2, 0, 1), (1, 2, 0))
    for positions in (integer_positions(4, 5, 2), floating_positions(4, 5, 2)):
        expected = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
        for of_positions in order:
            view, _ = strided(positions, order=of_positions, steps=(2, 1, 3), fill=7)
            for of_frequencies in order:
                matrix, _ = strided(frequencies, order=of_frequencies, padding=(1, 0, 2))
                actual = rope_ext.cos_sin(view, matrix, dtype=dtype)
                for table, same in zip(actual, expected, strict=True):
                    assert_same_bits(table, same)


@computed
def test_positions_and_frequencies_may_be_expanded(dtype: torch.dtype):
    positions, frequencies = integer_positions(1, 1), some_frequencies(1, 1, 9)
    for position, frequency in (
        (positions.expand(4, 2), frequencies.expand(2, 3, 9)),
        (positions.expand(4, 1), frequencies[..., :1].expand(1, 3, 9)),
    ):
        tables = rope_ext.cos_sin(position, frequency, dtype=dtype)
        copies = rope_ext.cos_sin(position.contiguous(), frequency.contiguous(), dtype=dtype)
        for table, same in zip(tables, copies, strict=True):
            assert_same_bits(table, same)


@pytest.mark.parametrize("scale", [0.5, 1.2079441541679836, -3.0, 0.0])
@computed
def test_scale_multiplies_cosine_and_sine(dtype: torch.dtype, scale: float):
    positions, frequencies = integer_positions(9), some_frequencies(5)
    plain = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
    scaled = rope_ext.cos_sin(positions, frequencies, scale, dtype)
    for table, expected in zip(scaled, plain, strict=True):
        assert torch.equal(table, expected * torch.tensor(scale, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_tables_of_16_bits_are_those_of_float32_rounded(dtype: torch.dtype):
    positions, frequencies = integer_positions(40), some_frequencies(9)
    for narrow, wide in zip(
        rope_ext.cos_sin(positions, frequencies, 1.5, dtype),
        rope_ext.cos_sin(positions, frequencies, 1.5, torch.float32),
        strict=True,
    ):
        assert_same_bits(narrow, wide.to(dtype))


def test_tables_are_float32_by_default():
    for dtype in (torch.int64, torch.float64):
        cos, sin = rope_ext.cos_sin(torch.ones(3).to(dtype), some_frequencies(5))
        assert cos.dtype == sin.dtype == torch.float32


def test_positions_of_any_shape_make_tables():
    one_axis, two_axes, per_head = (some_frequencies(*shape) for shape in ((5,), (2, 5), (2, 3, 5)))
    for leading in ((), (4,), (1, 4), (2, 3, 4), (2, 1, 2, 1, 2, 1, 2, 1)):
        positions = integer_positions(*leading, 2)
        assert_exact(rope_ext.cos_sin(positions[..., 0], one_axis), positions[..., 0], one_axis)
        assert_exact(rope_ext.cos_sin(positions, two_axes), positions, two_axes)
        assert_exact(rope_ext.cos_sin(positions, per_head), positions, per_head)
        assert rope_ext.cos_sin(positions, per_head)[0].shape == (*leading, 3, 5)


def test_tables_of_no_positions_or_no_pairs_are_empty():
    none = torch.empty(0, dtype=torch.int64)
    assert rope_ext.cos_sin(none, some_frequencies(5))[0].shape == (0, 5)
    assert rope_ext.cos_sin(none.reshape(0, 2), some_frequencies(2, 3, 5))[0].shape == (0, 3, 5)
    assert rope_ext.cos_sin(none.reshape(3, 0, 2), some_frequencies(2, 5))[0].shape == (3, 0, 5)
    assert rope_ext.cos_sin(torch.arange(3), some_frequencies(0))[1].shape == (3, 0)
    assert rope_ext.cos_sin(torch.zeros(3, 2), some_frequencies(2, 0, 5))[1].shape == (3, 0, 5)


@computed
@pytest.mark.parametrize("infinite", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("frequency_dtype", COMPUTE, ids=name)
def test_a_frequency_that_is_not_finite_makes_nan_of_its_pair_alone(
    frequency_dtype: torch.dtype, infinite: float, dtype: torch.dtype
):
    frequencies = some_frequencies(2, 3, 19).to(frequency_dtype)
    broken = frequencies.clone()
    broken[1, 2, 7] = broken[0, 0, 18] = infinite
    for positions in (torch.zeros(4, 2, dtype=torch.int32), floating_positions(4, 2)):
        whole = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
        for table, expected in zip(
            rope_ext.cos_sin(positions, broken, dtype=dtype), whole, strict=True
        ):
            expected[:, 2, 7] = expected[:, 0, 18] = math.nan
            assert_same_bits(table, expected)


@computed
@pytest.mark.parametrize("infinite", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("position_dtype", COMPUTE, ids=name)
def test_a_position_that_is_not_finite_makes_nan_of_its_token_alone(
    position_dtype: torch.dtype, infinite: float, dtype: torch.dtype
):
    frequencies = some_frequencies(2, 3, 19)
    frequencies[1] = 0
    positions = floating_positions(5, 2, dtype=position_dtype)
    whole = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
    positions[1, 0] = positions[3, 1] = infinite
    for table, expected in zip(
        rope_ext.cos_sin(positions, frequencies, dtype=dtype), whole, strict=True
    ):
        expected[[1, 3]] = math.nan
        assert_same_bits(table, expected)


def test_a_pair_of_an_infinite_angle_is_nan_and_every_other_pair_is_not():
    x = normal(3, 2, 12)
    frequencies = some_frequencies(4)
    frequencies[2] = math.inf
    y = rope_ext.rotate_frequencies(x, None, frequencies, start=2)
    pair = torch.zeros(12, dtype=torch.bool)
    pair[[2 + 2, 2 + 4 + 2]] = True
    assert y[..., pair].isnan().all()
    assert y[..., ~pair].isfinite().all()


@computed
def test_a_turn_more_does_not_change_a_bit(dtype: torch.dtype):
    """Positions 2^32 apart at frequencies of whole 2^-32 turns, and 2^64 of any."""
    frequencies = integer_positions(9) << 32
    positions = integer_positions(20)
    one = rope_ext.cos_sin(positions, frequencies, dtype=dtype)
    other = rope_ext.cos_sin(positions + 5 * 2**32, frequencies, dtype=dtype)
    for table, same in zip(one, other, strict=True):
        assert_same_bits(table, same)

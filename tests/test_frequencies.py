"""Frequencies and tables against mpmath, at more digits than float64 holds."""

import math

import mpmath
import pytest
import torch
from inputs import name

from rope_ext import frequencies

EPS = torch.finfo(torch.float64).eps


@pytest.mark.parametrize("base", [10000.0, 500000, 1e6, 0.5, 1.0])
@pytest.mark.parametrize("rotary_dim", [2, 6, 64, 128, 256])
def test_frequencies_are_a_geometric_series_from_one(rotary_dim: int, base: float):
    actual = frequencies.standard(rotary_dim, base)
    assert actual.dtype == torch.float64
    assert actual.shape == (rotary_dim // 2,)
    with mpmath.workdps(40):
        for pair, frequency in enumerate(actual.tolist()):
            exact = mpmath.mpf(base) ** (mpmath.mpf(-2 * pair) / rotary_dim)
            # The exponent is rounded before the power: an error of eps / 2 * |log(result)|.
            allowed = EPS * (1 + abs(mpmath.log(exact)) / 2) * exact
            assert abs(frequency - exact) <= allowed


def test_the_default_base_is_that_of_the_paper():
    assert torch.equal(frequencies.standard(64), frequencies.standard(64, 10000.0))


@pytest.mark.parametrize("rotary_dim", [-2, 0, 1, 63])
def test_odd_or_non_positive_rotary_dim_is_refused(rotary_dim: int):
    with pytest.raises(
        ValueError, match=f"^rotary_dim must be even and positive, got {rotary_dim}"
    ):
        frequencies.standard(rotary_dim)


@pytest.mark.parametrize("base", [0.0, -1.0, math.inf, -math.inf, math.nan])
def test_base_that_is_not_positive_and_finite_is_refused(base: float):
    with pytest.raises(ValueError, match=f"^base must be positive and finite, got {base}"):
        frequencies.standard(64, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=name)
@pytest.mark.parametrize("position", [0, 1, 4095, 131071, 1048575, -7])
def test_tables_hold_the_cosine_of_the_exact_angle(position: int, dtype: torch.dtype):
    freqs = frequencies.standard(64)
    cos, sin = frequencies.tables(torch.tensor([position]), freqs, dtype)
    assert cos.dtype == sin.dtype == dtype
    eps = torch.finfo(dtype).eps
    with mpmath.workdps(40):
        for pair, frequency in enumerate(freqs.tolist()):
            angle = mpmath.mpf(position) * mpmath.mpf(frequency)
            # The product is rounded once, cos once in float64 (to within an ulp) and once to dtype.
            float64_error = EPS / 2 * abs(angle) + EPS
            for actual, exact in (
                (cos[0, pair].item(), mpmath.cos(angle)),
                (sin[0, pair].item(), mpmath.sin(angle)),
            ):
                assert abs(actual - exact) <= float64_error + eps / 2 * (abs(exact) + float64_error)


@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (2, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32], ids=name)
def test_tables_have_a_row_per_position(shape: tuple[int, ...], dtype: torch.dtype):
    positions = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    cos, sin = frequencies.tables(positions, frequencies.standard(6))
    assert cos.shape == sin.shape == (*shape, 3)
    assert cos.dtype == sin.dtype == torch.float32


def test_tables_at_position_zero_do_not_turn():
    cos, sin = frequencies.tables(torch.zeros(2, dtype=torch.int64), frequencies.standard(8))
    assert torch.equal(cos, torch.ones(2, 4))
    assert torch.equal(sin, torch.zeros(2, 4))


def test_frequencies_of_two_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"^frequencies must have 1 dimension, got 2"):
        frequencies.tables(torch.arange(3), torch.ones(2, 4))


def test_tables_of_integers_are_refused():
    with pytest.raises(TypeError, match=r"^dtype must be floating point, got torch\.int64"):
        frequencies.tables(torch.arange(3), torch.ones(2), torch.int64)

"""Frequencies and tables against mpmath, recorded models and published definitions."""

import json
import math
import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from inputs import name
from torch import Tensor

from rope_ext import frequencies
from rope_ext.frequencies import (
    axial,
    base_for_context,
    blocks,
    by_axis,
    mixed,
    pixel,
    sections,
    standard,
    wavelengths,
)

EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "frequencies.md"
RECORDED = {
    case["name"]: case for case in json.loads((HERE / "golden/axes.json").read_text())["cases"]
}


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


# What the golden cases record, by the general functions.
GOLDEN = {
    "Qwen2-VL text chunked M-RoPE D=128": sections(standard(128, 1e6), (16, 24, 24)),
    "Qwen2-VL text chunked M-RoPE D=64": sections(standard(64, 1e6), (8, 12, 12)),
    "Qwen2-VL text chunked M-RoPE D=32": sections(standard(32, 1e6), (4, 6, 6)),
    "Qwen3-VL text interleaved M-RoPE D=128 [24, 20, 20]": sections(
        standard(128, 5e6), (24, 20, 20), "interleaved"
    ),
    "Qwen3-VL text interleaved M-RoPE D=64 [11, 11, 10]": sections(
        standard(64, 5e6), (11, 11, 10), "interleaved"
    ),
    "Qwen3-VL text interleaved M-RoPE D=64 [8, 12, 12]": sections(
        standard(64, 5e6), (8, 12, 12), "interleaved"
    ),
    "GLM-4V text chunked M-RoPE, interleaved pairing, partial .5 D=128": sections(
        standard(64), (8, 12, 12)
    ),
    "Ernie-4.5-VL text M-RoPE D=128": sections(standard(128, 5e5), (22, 22, 20), "alternating"),
    "Qwen2-VL vision 2-D D=80": axial((40, 40)),
    "Qwen3-VL vision 2-D D=72": axial((36, 36)),
    "Pixtral vision 2-D D=64": blocks(standard(64)[0::2], standard(64)[1::2]),
    "Gemma4 vision 2-D D=64": axial((32, 32), 100.0),
    "Step3.7 vision 2-D (w before h)": axial((48, 48)).flip(0),
    "Kimi-K2.5 vision 2-D (w, h alternating)": by_axis(
        standard(36).repeat_interleave(2), [1, 0] * 18
    ),
    "Inkling2 vision 2-D (w before h, interleaved)": axial((32, 32)).flip(0),
    "SAM2-video memory attention 2-D (interleaved)": axial((128, 128)),
    "MiniMax-M3 vision 3-D D=80 (78 rotate)": axial((26, 26, 26)),
    "DINOv3 2x3 patches D=64": 2 * math.pi * axial((32, 32), 100.0),
    "DINOv3 4x4 patches D=64": 2 * math.pi * axial((32, 32), 100.0),
    # Its axes are counted from 1, so that its class token, at -1, does not turn.
    "Llama-4 vision 4x4 patches D=32": axial((16, 16)).flip(0),
}


def numbers(rows: list[list[str]]) -> Tensor:
    return torch.tensor([[float(number) for number in row] for row in rows], dtype=torch.float64)


def float32_error(matrix: Tensor) -> Tensor:
    """How far transformers' float32 frequencies may be from these, as a share of them.

    It raises the base to an exponent that is rounded by half an ulp, which moves the power by that
    share of ln(power); the power is right to an ulp, its reciprocal and two more factors (2 pi, a
    period) and our own comparison are rounded by half an ulp each.
    """
    powers_of_base = (matrix / matrix.max()).where(matrix != 0, 1.0)
    return EPS32 / 2 * (powers_of_base.log().abs() + 2 + 1 + 2 + 1)


@pytest.mark.parametrize("case", RECORDED)
def test_a_recorded_model_is_reproduced(case: str):
    matrix, recorded = GOLDEN[case], RECORDED[case]
    positions = torch.tensor(recorded["positions"], dtype=torch.float64)
    if recorded["frequencies"] is None:
        positions += 1
    else:
        expected = numbers(recorded["frequencies"])
        assert torch.equal(matrix == 0, expected == 0)
        assert ((matrix - expected).abs() <= float32_error(matrix) * matrix).all()
    # The recorded angle is a product of a rounded position and a rounded frequency, rounded, and
    # its cosine is right to an ulp. DINOv3 rounds its coordinates four times.
    angles = positions @ matrix
    share = (float32_error(matrix) * (matrix != 0)).amax(0) + EPS32 / 2 * 6
    for actual, rows in ((angles.cos(), recorded["cos"]), (angles.sin(), recorded["sin"])):
        assert ((actual - numbers(rows)).abs() <= angles.abs() * share + EPS32).all()


def test_every_recorded_model_is_known():
    assert set(GOLDEN) == set(RECORDED)


def published_blocks(*series: list[float]) -> Tensor:
    """A block an axis, written out."""
    matrix = torch.zeros(len(series), sum(map(len, series)), dtype=torch.float64)
    start = 0
    for axis, block in enumerate(series):
        matrix[axis, start : start + len(block)] = torch.tensor(block, dtype=torch.float64)
        start += len(block)
    return matrix


def powers(dim: int, theta: float) -> list[float]:
    return [1 / theta ** (element / dim) for element in range(0, dim, 2)]


HEAD = 128
PUBLISHED = {
    # axes_dim and theta of each model's released configuration.
    "Flux": published_blocks(powers(16, 1e4), powers(56, 1e4), powers(56, 1e4)),
    "HunyuanVideo": published_blocks(powers(16, 256.0), powers(56, 256.0), powers(56, 256.0)),
    # Wan gives height and width a sixth of the head each, twice, and time the rest.
    "Wan 2.1": published_blocks(
        powers(HEAD - 4 * (HEAD // 6), 1e4),
        powers(2 * (HEAD // 6), 1e4),
        powers(2 * (HEAD // 6), 1e4),
    ),
    "EVA-02, pixels": published_blocks(*[[math.pi * (1 + 111 * i / 15) for i in range(16)]] * 2),
}
ROWS = {
    **PUBLISHED,
    "Llama 3 text": torch.tensor(powers(128, 5e5), dtype=torch.float64),
    "Qwen2-VL text": GOLDEN["Qwen2-VL text chunked M-RoPE D=128"],
    "Qwen3-VL text": GOLDEN["Qwen3-VL text interleaved M-RoPE D=128 [24, 20, 20]"],
    "Ernie 4.5 VL text": GOLDEN["Ernie-4.5-VL text M-RoPE D=128"],
    "GLM-4V text": GOLDEN["GLM-4V text chunked M-RoPE, interleaved pairing, partial .5 D=128"],
    "Qwen2-VL vision": GOLDEN["Qwen2-VL vision 2-D D=80"],
    "Gemma 4 vision": GOLDEN["Gemma4 vision 2-D D=64"],
    "SAM 2 video memory": GOLDEN["SAM2-video memory attention 2-D (interleaved)"],
    "MiniMax-M3 vision": GOLDEN["MiniMax-M3 vision 3-D D=80 (78 rotate)"],
    "Step 3.7 vision": GOLDEN["Step3.7 vision 2-D (w before h)"],
    "Pixtral": GOLDEN["Pixtral vision 2-D D=64"],
    "Kimi K2.5 vision": GOLDEN["Kimi-K2.5 vision 2-D (w, h alternating)"],
    "DINOv3": GOLDEN["DINOv3 4x4 patches D=64"],
}


def rows_of_the_page(columns: int) -> list[list[str]]:
    """The rows of a table of docs/frequencies.md, without its head."""
    if not PAGE.exists():
        return []
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == columns and not re.match("model|rule|-", row[0])]


@pytest.mark.skipif(not PAGE.exists(), reason="there is no docs/frequencies.md beside the tests")
@pytest.mark.parametrize(("model", "call"), [row[:2] for row in rows_of_the_page(3)])
def test_the_page_says_what_a_model_turns_by(model: str, call: str):
    matrix = eval(call.strip("`"), {"math": math, **vars(frequencies)})
    assert matrix.dtype == torch.float64
    if model == "RoPE-ViT, mixed":
        assert matrix.shape == (2, 6, 32)
    else:
        assert torch.allclose(matrix, ROWS[model], rtol=32 * EPS, atol=0)


@pytest.mark.skipif(not PAGE.exists(), reason="there is no docs/frequencies.md beside the tests")
@pytest.mark.parametrize(
    ("rotary_dim", "context", "least"),
    sorted({(row[1], row[2], row[4]) for row in rows_of_the_page(5)}),
)
def test_the_page_says_the_least_base(rotary_dim: str, context: str, least: str):
    assert base_for_context(int(context), int(rotary_dim)) == pytest.approx(float(least), rel=0.05)


@pytest.mark.parametrize("logarithmic", [False, True])
def test_pixel_frequencies_go_from_one_turn_to_half_a_turn_a_pixel(logarithmic: bool):
    turns = pixel(32, 224.0, logarithmic=logarithmic) / math.pi
    steps = turns.log().diff() if logarithmic else turns.diff()
    assert turns[0] == 1
    assert turns[-1] == pytest.approx(112, rel=4 * EPS)
    assert torch.allclose(steps, steps[:1], rtol=64 * EPS, atol=16 * EPS)


@pytest.mark.parametrize("max_frequency", [1.0, math.inf, math.nan])
def test_pixels_too_few_or_without_end_are_refused(max_frequency: float):
    with pytest.raises(
        ValueError, match=f"^max_frequency must be at least 2 and finite, got {max_frequency}"
    ):
        pixel(32, max_frequency)


def test_axial_axes_may_have_sizes_and_bases_of_their_own():
    matrix = axial((4, 8), (100.0, 10.0))
    expected = published_blocks(powers(4, 100.0), powers(8, 10.0))
    assert torch.allclose(matrix, expected, rtol=4 * EPS, atol=0)


def test_a_base_too_few_is_refused():
    with pytest.raises(ValueError, match=r"^bases must be 1 or 3 \(one an axis\), got 2"):
        axial((4, 4, 4), (100.0, 10.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda two: blocks(standard(4), two),
        lambda two: by_axis(two, [0]),
        lambda two: sections(two, [2]),
    ],
    ids=["blocks", "by_axis", "sections"],
)
def test_a_map_of_what_is_no_series_is_refused(make):
    with pytest.raises(ValueError, match=r"^frequencies must have 1 dimension, got 2"):
        make(torch.ones(1, 2))


def test_every_pair_has_one_axis():
    series = standard(8)
    matrix = by_axis(series, [2, 0, 2, 0])
    assert matrix.tolist() == [
        [0, series[1], 0, series[3]],
        [0, 0, 0, 0],
        [series[0], 0, series[2], 0],
    ]


def test_an_axis_too_few_is_refused():
    with pytest.raises(ValueError, match=r"^axes must be 4 \(one a pair\), got 3"):
        by_axis(standard(8), [0, 1, 0])


def test_a_negative_axis_is_refused():
    with pytest.raises(ValueError, match=r"^axes must be at least 0, got -1"):
        by_axis(standard(8), [0, 1, 0, -1])


@pytest.mark.parametrize("sizes", [(4, 2, 2), (3, 3, 2), (2, 2, 4), (1, 1, 6)])
@pytest.mark.parametrize("order", ["chunked", "interleaved", "alternating"])
def test_with_one_position_on_all_axes_sections_turn_as_the_series(
    sizes: tuple[int, ...], order: str
):
    if order == "alternating":
        sizes = (sizes[0], sizes[0], 8 - 2 * sizes[0]) if sizes[0] < 4 else (3, 3, 2)
    series = standard(16)
    matrix = sections(series, sizes, order)
    assert torch.equal(matrix.sum(0), series)
    assert ((matrix > 0).sum(0) == 1).all()


def test_chunked_and_alternating_sections_have_their_sizes():
    assert (sections(standard(16), (4, 1, 3)) > 0).sum(1).tolist() == [4, 1, 3]
    assert (sections(standard(16), (3, 3, 2), "alternating") > 0).sum(1).tolist() == [2, 3, 3]


@pytest.mark.parametrize("sizes", [(4, 2, 1), (4, 4, 1), (8, 0), (9, -1)])
def test_sizes_that_are_not_the_pairs_are_refused(sizes: tuple[int, ...]):
    received = re.escape(str(sizes))
    with pytest.raises(
        ValueError, match=f"^sizes must be positive and add up to 8 pairs, got {received}"
    ):
        sections(standard(16), sizes)


@pytest.mark.parametrize("sizes", [(4, 2, 2), (4, 4)])
def test_height_and_width_that_cannot_alternate_are_refused(sizes: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"^sizes must be height, width and time, the first two"):
        sections(standard(16), sizes, "alternating")


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"^order must be .*, got 'shuffled'"):
        sections(standard(16), (4, 2, 2), "shuffled")


def test_mixed_frequencies_are_those_of_rope_vit():
    """For two axes, published as cosines and sines of an angle and of that plus a right angle."""
    actual = mixed((8, 8), heads=5, generator=torch.Generator().manual_seed(0))
    size = torch.tensor(powers(8, 10.0), dtype=torch.float64)
    angle = torch.atan2(actual[1, :, 0], actual[0, :, 0]).unsqueeze(-1)
    for axis, wave in enumerate((torch.cos, torch.sin)):
        expected = torch.cat([size * wave(angle), size * wave(angle + math.pi / 2)], -1)
        assert torch.allclose(actual[axis], expected, atol=16 * EPS, rtol=0)
    assert len(angle.unique()) == 5


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_mixed_frequencies_are_turned_axial_ones(axes: int):
    """Distances in what the heads see are those of the axial map: a rotation, no reflection."""
    dims = (6,) * axes
    actual = mixed(dims, heads=4, generator=torch.Generator().manual_seed(1))
    for head in actual.unbind(1):
        rotation = head[:, ::3]  # the first pair of each block has frequency 1
        assert torch.allclose(rotation @ axial(dims, 10.0), head, atol=16 * EPS, rtol=0)
        assert torch.allclose(
            rotation @ rotation.T, torch.eye(axes, dtype=torch.float64), atol=16 * EPS, rtol=0
        )
        assert torch.linalg.det(rotation) == pytest.approx(1)


@pytest.mark.parametrize("axes", [2, 3])
def test_mixed_directions_prefer_no_axis(axes: int):
    """The entries of a uniform rotation have mean 0 and variance 1 / axes."""
    heads = 4096
    rotations = mixed((2,) * axes, heads, generator=torch.Generator().manual_seed(2))
    assert (rotations.mean(1).abs() < 6 / math.sqrt(axes * heads)).all()


def test_mixed_frequencies_follow_their_generator():
    first, second, other = (
        mixed((8, 8), 2, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_no_heads_are_refused():
    with pytest.raises(ValueError, match=r"^heads must be positive, got 0"):
        mixed((8, 8), 0)


def test_positions_a_wavelength_apart_have_the_same_angle():
    freqs = standard(64)
    turn = frequencies.tables(torch.zeros(1), freqs, torch.float64)[0]
    angles = wavelengths(freqs) * freqs
    assert torch.allclose(angles.cos(), turn, atol=8 * EPS, rtol=0)
    assert wavelengths(torch.zeros(2)).tolist() == [math.inf, math.inf]


def lowest_similarity(base: float, context_length: int, rotary_dim: int) -> float:
    """The definition, by other means: numpy, one distance after the other."""
    series = np.array(powers(rotary_dim, base))
    return min(np.cos(distance * series).mean() for distance in range(context_length))


@pytest.mark.parametrize(
    ("context_length", "rotary_dim"), [(1, 64), (100, 16), (1024, 64), (2048, 128)]
)
def test_the_least_base_keeps_the_mean_cosine_positive(context_length: int, rotary_dim: int):
    base = base_for_context(context_length, rotary_dim)
    assert lowest_similarity(base, context_length, rotary_dim) >= 0
    if context_length > 1:
        assert lowest_similarity(base / 1.005, context_length, rotary_dim) < 0


@pytest.mark.parametrize("context_length", [1024, 2048, 4096, 8192, 16384, 32768])
def test_the_least_base_is_about_the_published_fit(context_length: int):
    """Men et al. fit a power law to values that scatter by some tens of percent."""
    published = 0.0424 * context_length**1.628
    assert 1 / 1.6 < base_for_context(context_length, 128) / published < 1.6


@pytest.mark.parametrize("context_length", [0, -1])
def test_a_context_without_tokens_is_refused(context_length: int):
    with pytest.raises(ValueError, match=f"^context_length must be positive, got {context_length}"):
        base_for_context(context_length, 64)


@pytest.mark.parametrize("rotary_dim", [-2, 2, 5])
def test_a_base_for_a_single_pair_is_refused(rotary_dim: int):
    with pytest.raises(
        ValueError, match=f"^rotary_dim must be even and at least 4, got {rotary_dim}"
    ):
        base_for_context(1024, rotary_dim)


def test_frequencies_are_made_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        made = [
            standard(8),
            pixel(8, 224.0),
            axial((4, 4)),
            by_axis(standard(8), [0, 1, 0, 1]),
            sections(standard(8), (2, 1, 1)),
            mixed((4, 4), 2),
        ]
        assert base_for_context(64, 16) > 1
    assert {matrix.device.type for matrix in made} == {"cpu"}

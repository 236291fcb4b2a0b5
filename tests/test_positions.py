"""Positions of grids and of sequences that mix text with pictures, against recorded models."""

import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2VLModel

from rope_ext.frequencies import axial
from rope_ext.positions import centred, fractional, grid, multimodal, normalised

EPS = torch.finfo(torch.float64).eps
GOLDEN = Path(__file__).parent / "golden" / "axes.json"
RECORDED = {case["name"]: case["positions"] for case in json.loads(GOLDEN.read_text())["cases"]}


def test_a_grid_counts_its_last_axis_fastest():
    positions = grid(2, 3, 4)
    assert positions.dtype == torch.int64
    assert positions.tolist() == [[t, h, w] for t in range(2) for h in range(3) for w in range(4)]


@pytest.mark.parametrize(("sizes", "shape"), [((5,), (5, 1)), ((0, 3), (0, 2)), ((1, 1), (1, 2))])
def test_grids_may_have_one_axis_or_no_cell(sizes: tuple[int, ...], shape: tuple[int, ...]):
    assert grid(*sizes).shape == shape


def test_an_axis_may_bring_its_coordinates():
    positions = grid(2, torch.tensor([10, 7]))
    assert positions.dtype == torch.int64
    assert positions.tolist() == [[0, 10], [0, 7], [1, 10], [1, 7]]
    halves = grid(2, torch.tensor([0.5]))
    assert halves.dtype == torch.float64
    assert halves.tolist() == [[0, 0.5], [1, 0.5]]


def test_a_grid_lies_where_its_coordinates_lie():
    assert grid(2, torch.empty(3, device="meta")).device.type == "meta"


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match=r"^sizes must be at least 0, got -1"):
        grid(3, -1)


def test_coordinates_of_two_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"^coordinates must have 1 dimension, got 2"):
        grid(3, torch.zeros(2, 2))


def test_grids_are_those_of_recorded_models():
    assert grid(2, 2, 3).tolist() == RECORDED["MiniMax-M3 vision 3-D D=80 (78 rotate)"][:12]
    assert grid(3, 4).tolist() == RECORDED["Qwen2-VL vision 2-D D=80"][:12]
    assert grid(4, 4).tolist() == RECORDED["Llama-4 vision 4x4 patches D=32"][:16]


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 4)])
def test_normalised_coordinates_are_those_of_dinov3(height: int, width: int):
    expected = torch.tensor(RECORDED[f"DINOv3 {height}x{width} patches D=64"], dtype=torch.float64)
    actual = grid(normalised(height), normalised(width))
    assert torch.allclose(actual, expected, rtol=0, atol=2 * EPS)


@pytest.mark.parametrize("size", [1, 2, 7, 224])
def test_normalised_coordinates_are_centres_of_equal_cells(size: int):
    coordinates = normalised(size)
    assert coordinates.dtype == torch.float64
    assert torch.allclose(coordinates, -coordinates.flip(0), rtol=0, atol=2 * EPS)
    assert coordinates[0].item() == pytest.approx(-1 + 1 / size)
    assert torch.allclose(
        coordinates.diff(), torch.full((size - 1,), 2 / size).double(), rtol=1e-7, atol=0
    )


def test_an_extent_keeps_the_cells_of_a_picture_square():
    """A picture of 2 x 4 cells on the square of its larger side, from its top."""
    assert normalised(2, extent=4).tolist() == normalised(4)[:2].tolist()
    assert normalised(4, extent=2).tolist() == [-0.5, 0.5, 1.5, 2.5]


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_centred_coordinates_are_one_apart_around_zero(size: int):
    coordinates = centred(size)
    assert coordinates.dtype == torch.float64
    assert coordinates.sum() == 0
    assert torch.equal(coordinates.diff(), torch.ones(size - 1, dtype=torch.float64))


def test_a_shift_of_positions_leaves_scores_alone():
    frequencies = axial((8, 8))
    differences = []
    for positions in (grid(3, 4).double(), grid(centred(3), centred(4))):
        angles = positions @ frequencies
        differences.append(angles.unsqueeze(0) - angles.unsqueeze(1))
    assert torch.allclose(*differences, rtol=0, atol=8 * EPS)


@pytest.mark.parametrize("reference", [14, 16])
@pytest.mark.parametrize("size", [1, 14, 24, 37])
def test_fractional_coordinates_stay_where_the_reference_was(size: int, reference: int):
    coordinates = fractional(size, reference)
    expected = [cell * reference / size for cell in range(size)]
    assert coordinates.dtype == torch.float64
    assert coordinates.tolist() == expected
    assert max(expected) < reference


def installed_positions(parts: list[int | tuple[int, int, int]], merged: int) -> torch.Tensor:
    """What transformers lays out, for text and pictures of patches that are merged."""
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=merged))
    )
    model.get_vision_position_ids = partial(Qwen2VLModel.get_vision_position_ids, model)
    sizes = [part if isinstance(part, int) else math.prod(part) // merged**2 for part in parts]
    kinds = [int(not isinstance(part, int)) for part in parts]
    token_types = torch.tensor(kinds).repeat_interleave(torch.tensor(sizes))
    pictures = torch.tensor([part for part in parts if not isinstance(part, int)])
    positions, _ = Qwen2VLModel.get_rope_index(
        model, torch.zeros(1, sum(sizes), dtype=torch.int64), token_types[None], pictures
    )
    return positions[:, 0].T


@pytest.mark.parametrize(
    "parts",
    [
        [5, (1, 4, 6), 3],
        [(1, 8, 4), 2, (1, 4, 4), 7],
        [1, (1, 2, 12), 1, (1, 12, 2), 1],
    ],
)
def test_text_and_pictures_are_laid_out_as_in_qwen2_vl(parts: list):
    merged = 2
    ours = multimodal(
        *(p if isinstance(p, int) else grid(p[0], p[1] // merged, p[2] // merged) for p in parts)
    )
    assert torch.equal(ours, installed_positions(parts, merged))


def test_what_follows_begins_behind_the_largest_position_on_any_axis():
    """A video of more frames than rows or columns, as the paper has it."""
    positions = multimodal(2, grid(9, 2, 2), 1)
    assert positions[2].tolist() == [2, 2, 2]
    assert positions[-2].tolist() == [10, 3, 3]
    assert positions[-1].tolist() == [11, 11, 11]


def test_what_follows_a_picture_never_begins_before_it():
    assert multimodal(5, torch.tensor([[-3, 0]]), 1)[-1].tolist() == [6, 6]
    assert multimodal(5, torch.tensor([[-3, -3]]), 1)[-1].tolist() == [5, 5]


def test_text_alone_has_one_position_on_three_axes():
    assert multimodal(2, 1).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


def test_parts_may_be_empty_and_have_axes_of_their_own():
    assert multimodal(1, grid(0, 3), 0, grid(1, 2)).tolist() == [[0, 0], [1, 1], [1, 2]]


def test_times_may_be_fractions():
    video = grid(torch.tensor([0.0, 1.5]), 1, 1)
    assert multimodal(1, video, 1).tolist() == [[0] * 3, [1] * 3, [2.5, 1, 1], [3.5] * 3]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((1, grid(2, 2), grid(1, 2, 2)), r"positions must be \(tokens, 2\), got \(4, 3\)"),
        ((torch.zeros(2),), r"positions must be \(tokens, 2\), got \(2,\)"),
        ((3, -1), r"text must be at least 0 tokens, got -1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: tuple, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        multimodal(*parts)

"""AxialRotaryEmbedding: grids, prefix tokens, ragged pictures, coordinates and augmentation."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from inputs import DTYPES, name, normal
from tolerance import assert_same_bits
from torch import Tensor
from turned import assert_turned

from rope_ext import AxialRotaryEmbedding, CoordinateAugmentation
from rope_ext.frequencies import axial
from rope_ext.positions import centred, fractional, grid, normalised

HEAD_DIM = 24


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    ("axes", "dims", "sizes"),
    [
        (2, (12, 12), (3, 5)),
        (3, (8, 8, 8), (2, 3, 4)),
        ((4, 10, 10), (4, 10, 10), (2, 3, 4)),
        (1, (24,), (7,)),
        (5, (4,) * 5, (1, 2, 1, 3, 2)),
    ],
)
def test_a_grid_rotates_as_the_reference_says(axes, dims, sizes, dtype: torch.dtype):
    rope = AxialRotaryEmbedding(HEAD_DIM, axes, bases=100.0)
    query = normal(2, math.prod(sizes), 3, HEAD_DIM, dtype=dtype)
    key = normal(2, math.prod(sizes), 1, HEAD_DIM, dtype=dtype, seed=1)
    new_query, new_key = rope(query.clone(), key.clone(), sizes)
    assert_turned(new_query, query, grid(*sizes), axial(dims, 100.0))
    assert_turned(new_key, key, grid(*sizes), axial(dims, 100.0))


def test_what_axes_cannot_share_is_not_rotated():
    rope = AxialRotaryEmbedding(80, 3)
    assert rope.rotary_dim == 78


def test_every_axis_may_have_a_base_of_its_own():
    x = normal(6, 2, HEAD_DIM)
    rope = AxialRotaryEmbedding(HEAD_DIM, bases=(10.0, 500.0))
    assert_turned(rope(x.clone(), None, (2, 3)), x, grid(2, 3), axial((12, 12), (10.0, 500.0)))


def test_a_layout_holds_for_grids_too():
    x = normal(2, 3, 6, HEAD_DIM)
    options = {"start": 4, "interleaved": True, "seq_dim": -2}
    rope = AxialRotaryEmbedding(HEAD_DIM, **options)
    assert_turned(rope(x.clone(), None, (2, 3)), x, grid(2, 3), axial((10, 10)), **options)


@pytest.mark.parametrize("prefix_tokens", [1, 5])
@pytest.mark.parametrize("inplace", [True, False])
def test_prefix_tokens_are_untouched(inplace: bool, prefix_tokens: int):
    rope = AxialRotaryEmbedding(HEAD_DIM, prefix_tokens=prefix_tokens, inplace=inplace)
    x = normal(2, prefix_tokens + 12, 3, HEAD_DIM)
    actual = rope(x.clone(), None, (3, 4))
    assert_same_bits(actual[:, :prefix_tokens], x[:, :prefix_tokens])
    assert_turned(actual[:, prefix_tokens:], x[:, prefix_tokens:], grid(3, 4), axial((12, 12)))


def test_pictures_of_several_sizes_packed_into_one_rotate_as_each_alone():
    rope = AxialRotaryEmbedding(HEAD_DIM, prefix_tokens=2)
    sizes = [(3, 4), (1, 1), (5, 2)]
    pictures = [normal(2 + math.prod(size), 3, HEAD_DIM, seed=i) for i, size in enumerate(sizes)]
    packed = rope(torch.cat(pictures), None, torch.cat([rope.grid(*size) for size in sizes]))
    alone = [rope(picture, None, size) for picture, size in zip(pictures, sizes, strict=True)]
    assert_same_bits(packed, torch.cat(alone))


@pytest.mark.parametrize(
    "coordinates",
    [normalised, centred, partial(fractional, reference=14), partial(normalised, extent=4)],
    ids=["normalised", "centred", "fractional", "normalised by 4"],
)
def test_coordinates_may_be_others_than_the_numbers_of_cells(coordinates):
    rope = AxialRotaryEmbedding(
        HEAD_DIM,
        frequencies=2 * math.pi * axial((12, 12), 100.0),
        coordinates=coordinates,
        prefix_tokens=1,
    )
    x = normal(1 + 12, 2, HEAD_DIM)
    positions = torch.cat((torch.zeros(1, 2), grid(coordinates(3), coordinates(4))))
    for module in (rope, copy.deepcopy(rope), pickle.loads(pickle.dumps(rope)).half()):
        actual = module(x.clone(), None, (3, 4))
        assert_turned(actual, x, positions, 2 * math.pi * axial((12, 12), 100.0))


def test_frequencies_of_more_than_a_turn_count_their_turns_at_fractions():
    """Turns are kept modulo one: radians must serve where positions are not whole."""
    radians = torch.full((1, 12), 3 * 2 * math.pi + 1.0, dtype=torch.float64)
    rope = AxialRotaryEmbedding(HEAD_DIM, frequencies=radians)
    x = normal(3, 2, HEAD_DIM)
    positions = torch.tensor([[0.5], [0.25], [-1.75]], dtype=torch.float64)
    assert_turned(rope(x.clone(), None, positions), x, positions, radians)


def augmented(**options: float) -> AxialRotaryEmbedding:
    return AxialRotaryEmbedding(
        HEAD_DIM,
        coordinates=normalised,
        prefix_tokens=1,
        augmentation=CoordinateAugmentation(**options),
    )


def draws(rope: AxialRotaryEmbedding) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([rope.grid(3, 4, generator=generator) for _ in range(500)])


def test_augmentation_is_off_in_eval():
    rope = augmented(shift=0.5, jitter=2.0, rescale=2.0).eval()
    expected = torch.cat((torch.zeros(1, 2), grid(normalised(3), normalised(4))))
    assert_same_bits(rope.grid(3, 4), expected)
    x = normal(13, 2, HEAD_DIM)
    assert_same_bits(rope(x.clone(), None, (3, 4)), rope(x.clone(), None, expected))


def test_the_same_generator_draws_the_same_coordinates():
    rope = augmented(shift=0.5, jitter=2.0, rescale=2.0)
    first, again = draws(rope), draws(rope)
    assert_same_bits(first, again)
    assert not torch.equal(first[0], first[1])


def test_prefix_tokens_stay_where_they_are():
    assert (draws(augmented(shift=0.5, jitter=2.0, rescale=2.0))[:, 0] == 0).all()


def test_a_shift_moves_each_axis_by_an_amount_of_its_own():
    plain = grid(normalised(3), normalised(4))
    moved = draws(augmented(shift=0.5))[:, 1:] - plain
    assert (moved - moved[:, :1]).abs().max() <= 1e-15
    amounts = moved[:, 0]
    assert amounts.abs().max() <= 0.5 + 1e-15
    assert amounts.amax(0).min() > 0.45
    assert amounts.amin(0).max() < -0.45
    assert (amounts[:, 0] != amounts[:, 1]).all()


@pytest.mark.parametrize("kind", ["jitter", "rescale"])
def test_a_stretch_is_of_each_axis_or_of_all(kind: str):
    plain = grid(normalised(4), normalised(4))
    rope = augmented(**{kind: 3.0})
    generator = torch.Generator().manual_seed(0)
    stretched = torch.stack([rope.grid(4, 4, generator=generator)[1:] for _ in range(500)])
    factors = stretched / plain
    assert (factors - factors[:, :1]).abs().max() <= 1e-14
    factors = factors[:, 0]
    assert (factors[:, 0] == factors[:, 1]).all() == (kind == "rescale")
    assert factors.amax() <= 3 * (1 + 1e-14)
    assert factors.amin() >= (1 - 1e-14) / 3
    # Log-uniform: half of the draws shrink. 500 draws stray from that by 0.05 at two sigma.
    assert abs((factors < 1).double().mean() - 0.5) < 0.1
    assert factors.amax() > 2.8


def test_sizes_are_refused_where_each_call_would_draw_anew():
    rope = augmented(shift=0.5)
    with pytest.raises(ValueError, match=r"^positions must be a tensor, .* got sizes \(3, 4\)"):
        rope(normal(13, 2, HEAD_DIM), None, (3, 4))


@pytest.mark.parametrize(
    ("options", "subject"),
    [({"shift": -0.1}, "shift"), ({"jitter": 0.9}, "jitter"), ({"rescale": math.nan}, "rescale")],
)
def test_augmentations_that_are_none_are_refused(options: dict[str, float], subject: str):
    with pytest.raises(ValueError, match=f"^{subject} must be at least"):
        CoordinateAugmentation(**options)


def test_positions_must_be_given():
    with pytest.raises(ValueError, match=r"^positions must be given"):
        AxialRotaryEmbedding(HEAD_DIM)(normal(6, 2, HEAD_DIM))


@pytest.mark.parametrize("sizes", [(6,), (1, 2, 3)])
def test_another_number_of_sizes_is_refused(sizes: tuple[int, ...]):
    with pytest.raises(ValueError, match=rf"^sizes must be 2 \(one an axis\), got {len(sizes)}"):
        AxialRotaryEmbedding(HEAD_DIM)(normal(6, 2, HEAD_DIM), None, sizes)


def test_axes_and_prefix_tokens_below_their_least_are_refused():
    with pytest.raises(ValueError, match=r"^axes must be at least 1, got 0"):
        AxialRotaryEmbedding(HEAD_DIM, 0)
    with pytest.raises(ValueError, match=r"^prefix_tokens must be at least 0, got -1"):
        AxialRotaryEmbedding(HEAD_DIM, prefix_tokens=-1)


def test_a_packed_projection_takes_sizes():
    rope = AxialRotaryEmbedding(HEAD_DIM)
    packed = normal(2, 6, 3 * HEAD_DIM)
    actual = rope.forward_packed(packed.clone(), 1, 1, (2, 3))
    radians = axial((12, 12))
    assert_turned(actual, packed, grid(2, 3), radians, head_dim=HEAD_DIM, num_heads=2)

"""XPosRotaryEmbedding: scores that fade with the distance, and keys in a cache."""

from __future__ import annotations

import math

import pytest
import torch
from inputs import DTYPES, name, normal
from tolerance import COMPUTE, assert_same_bits
from torch import Tensor

from rope_ext import XPosRotaryEmbedding, frequencies, reference

HEAD_DIM, TOKENS, CENTRE = 16, 6, 300.0


def assert_faded(
    actual: Tensor, x: Tensor, positions: Tensor, sign: int, rotary_dim: int, **options: object
) -> None:
    """By the definition of Sun et al. in float64; sign is 1 for queries and -1 for keys.

    Two products of rounded factors and their sum err by at most 3 eps of the compute type times
    ``|x| + |y|`` and the largest scale; the store rounds once more. The reference's angles, below
    1000, err by less than that in float64 if 1e-12 is added.
    """
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float64)
    zeta = (2 * pairs / rotary_dim + 0.4) / 1.4
    fade = zeta ** (sign * (positions.double().unsqueeze(-1) - CENTRE) / 512)
    angles = positions.double().unsqueeze(-1) * frequencies.standard(rotary_dim)
    exact = reference.rotate(x, angles.cos() * fade, angles.sin() * fade, **options)
    error = (3 * torch.finfo(COMPUTE[x.dtype]).eps + 1e-12) * fade.max() * 2 * x.abs().max()
    rounding = torch.finfo(x.dtype).eps
    assert actual.dtype == x.dtype
    torch.testing.assert_close(actual.double(), exact, rtol=rounding, atol=error.item())


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"interleaved": True, "start": 2, "rotary_dim": 8}, {"seq_dim": -2}],
    ids=["whole", "partial", "heads first"],
)
def test_queries_grow_where_keys_shrink_as_the_definition_says(
    options: dict[str, object], inplace: bool, dtype: torch.dtype
):
    rope = XPosRotaryEmbedding(HEAD_DIM, centre=CENTRE, inplace=inplace, **options)
    query = normal(2, TOKENS, TOKENS, HEAD_DIM, dtype=dtype)
    options = {"rotary_dim": HEAD_DIM, **options}
    whole = torch.tensor([0, 300, -100, 900, 301, 7])
    for positions in (whole, whole.repeat(2, 1), whole + 0.25):
        new_query, new_key = rope(query.clone(), query.clone(), positions)
        assert_faded(new_query, query, positions, 1, **options)
        assert_faded(new_key, query, positions, -1, **options)
    assert_faded(rope(query.clone()), query, torch.arange(TOKENS), 1, **options)


def test_scores_depend_on_differences_of_positions_alone():
    """To 1e-11 in float64, where neither query nor key has grown a thousandfold."""
    rope = XPosRotaryEmbedding(HEAD_DIM, centre=CENTRE)
    query, key = (normal(1, 2, HEAD_DIM, dtype=torch.float64, seed=seed) for seed in (0, 1))
    for distance in (0, 1, 500):
        scores = []
        for offset in (0, 300, -1000, 2000):
            of_key = torch.tensor([offset])
            new_query = rope(query.clone(), positions=of_key + distance)
            _, new_key = rope(query.clone(), key.clone(), of_key)
            scores.append((new_query * new_key).sum(-1))
        for score in scores[1:]:
            assert (score - scores[0]).abs().max() <= 1e-11


def test_far_scores_are_smaller():
    rope = XPosRotaryEmbedding(HEAD_DIM)
    ones = torch.ones(1, 1, HEAD_DIM)
    _, key = rope(ones.clone(), ones.clone(), torch.tensor([0]))
    period = round(2 * math.pi * 1000)
    scores = [
        (rope(ones.clone(), positions=torch.tensor([far])) * key).norm()
        for far in (0, period, 2 * period)
    ]
    assert scores[0] > scores[1] > scores[2]


def test_keys_in_a_cache_stay_right_while_the_sequence_grows():
    rope = XPosRotaryEmbedding(HEAD_DIM, centre=CENTRE)
    query, key = normal(9, 2, HEAD_DIM), normal(9, 2, HEAD_DIM, seed=1)
    whole = rope(query.clone(), key.clone())
    for token in range(9):
        one = slice(token, token + 1)
        step = rope(query[one].clone(), key[one].clone(), torch.tensor([token]))
        for new, all_at_once in zip(step, whole, strict=True):
            assert_same_bits(new, all_at_once[one])


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_a_packed_projection_scales_queries_and_keys_by_inverses(leading: tuple[int, ...]):
    rope = XPosRotaryEmbedding(HEAD_DIM, centre=CENTRE, inplace=False)
    packed = normal(*leading, TOKENS, (3 + 1 + 1) * HEAD_DIM)
    query, key, value = packed.unflatten(-1, (5, HEAD_DIM)).split((3, 1, 1), dim=-2)
    for positions in (None, torch.arange(TOKENS) * 50, torch.randint(0, 900, (*leading, TOKENS))):
        expected = torch.cat((*rope(query, key, positions), value), dim=-2).flatten(-2)
        assert_same_bits(rope.forward_packed(packed, 3, 1, positions), expected)


def test_gradients_are_scaled_as_the_values():
    rope = XPosRotaryEmbedding(HEAD_DIM, centre=CENTRE)
    leaf = normal(TOKENS, 2, HEAD_DIM, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rope(x * 1, x * 2), leaf)


@pytest.mark.parametrize("scale_base", [0.0, -1.0, math.nan])
def test_a_scale_base_that_is_not_positive_is_refused(scale_base: float):
    with pytest.raises(ValueError, match=f"^scale_base must be positive, got {scale_base}"):
        XPosRotaryEmbedding(HEAD_DIM, scale_base=scale_base)

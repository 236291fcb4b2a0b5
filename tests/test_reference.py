"""The float64 reference against the definition, written out element by element and as others do.

Others write it with complex numbers, and as the half-split formula of the Llama family.
"""

import itertools
import math

import pytest
import torch
from inputs import DTYPES, FORMS, Angles, Layout, angle_tables, integers, name, normal

from rope_ext import reference

EPS = torch.finfo(torch.float64).eps


def rotated_element_by_element(
    x, cos, sin, positions, *, seq_dim, flat, num_heads, start, interleaved, inverse, head_dim
):
    """Loop over tokens, heads and pairs; broadcast by taking index 0 of a dimension of size 1."""

    def pick(table, index):
        index = index[len(index) - table.dim() :]
        return table[tuple(0 if n == 1 else i for i, n in zip(index, table.shape, strict=True))]

    y = x.to(torch.float64).clone()
    leading = x.shape[:-2] if flat else x.shape[:-3]
    if flat:
        tokens, heads = x.shape[-2], x.shape[-1] // head_dim
    elif seq_dim == -2:
        heads, tokens = x.shape[-3:-1]
    else:
        tokens, heads = x.shape[-3:-1]
    pairs = cos.shape[-1]

    ranges = [range(n) for n in (*leading, tokens, num_heads or heads, pairs)]
    for *batch, token, head, pair in itertools.product(*ranges):
        if positions is not None:
            row = (pick(positions, (*batch, token)).item(), pair)
        elif cos.dim() == 2:
            row = (token, pair)
        elif cos.dim() == len(leading) + 3 and seq_dim == -2:
            row = (*batch, head, token, pair)
        elif cos.dim() == len(leading) + 3:
            row = (*batch, token, head, pair)
        else:
            row = (*batch, token, pair)
        c = (cos[row] if cos.dim() == 2 else pick(cos, row)).item()
        s = (sin[row] if sin.dim() == 2 else pick(sin, row)).item()
        if inverse:
            s = -s

        first = start + (2 * pair if interleaved else pair)
        second = first + (1 if interleaved else pairs)
        if flat:
            place = (*batch, token)
            first, second = head * head_dim + first, head * head_dim + second
        elif seq_dim == -2:
            place = (*batch, head, token)
        else:
            place = (*batch, token, head)
        a, b = x[(*place, first)].item(), x[(*place, second)].item()
        y[(*place, first)] = a * c - b * s
        y[(*place, second)] = a * s + b * c
    return y


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("layout", "angles"), FORMS)
def test_every_form_agrees_with_the_definition(layout: Layout, angles: Angles, interleaved: bool):
    tokens, heads, head_dim, pairs = 3, 4, 8, 2
    x = normal(*layout.shape(tokens, heads, head_dim), dtype=torch.float64)
    cos, sin, positions = angles(layout, tokens, 3, pairs, torch.float64)
    rest = {"num_heads": 3, "start": 1, "interleaved": interleaved, "inverse": interleaved}

    expected = rotated_element_by_element(
        x, cos, sin, positions, flat=layout.flat, head_dim=head_dim, seq_dim=layout.seq_dim, **rest
    )
    actual = reference.rotate(x, cos, sin, positions, **layout.options(head_dim), **rest)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_interleaved_pairs_turn_as_complex_numbers():
    x = normal(2, 5, 3, 16, dtype=torch.float64)
    cos, sin = angle_tables(5, 8, dtype=torch.float64)
    turned = torch.view_as_complex(x.unflatten(-1, (8, 2))) * torch.complex(cos, sin)[:, None]
    expected = torch.view_as_real(turned).flatten(-2)
    actual = reference.rotate(x, cos, sin, interleaved=True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2 * EPS * float(x.abs().max()))


def test_half_split_pairs_turn_as_in_the_llama_family():
    x = normal(2, 3, 5, 16, dtype=torch.float64)
    cos, sin = angle_tables(5, 8, dtype=torch.float64)
    half_turned = torch.cat((-x[..., 8:], x[..., :8]), dim=-1)
    expected = x * torch.cat((cos, cos), dim=-1) + half_turned * torch.cat((sin, sin), dim=-1)
    actual = reference.rotate(x, cos, sin, seq_dim=-2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2 * EPS * float(x.abs().max()))


def test_a_sixth_of_a_turn_moves_one_zero_where_geometry_says():
    x = torch.tensor([[[1.0, 0.0]]])
    angle = torch.tensor([[math.pi / 3]], dtype=torch.float64)
    actual = reference.rotate(x, angle.cos(), angle.sin())
    expected = torch.tensor([[[1 / 2, math.sqrt(3) / 2]]], dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=EPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_result_is_a_new_float64_tensor(dtype: torch.dtype):
    x = normal(3, 2, 8, dtype=dtype)
    before = x.clone()
    actual = reference.rotate(x, *angle_tables(3, 4))
    assert actual.dtype == torch.float64
    assert torch.equal(x, before)
    actual.zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("interleaved", [False, True])
def test_what_is_not_rotated_is_copied(interleaved: bool):
    x = normal(3, 4, 16, dtype=torch.float64)
    y = reference.rotate(x, *angle_tables(3, 4), start=3, num_heads=2, interleaved=interleaved)
    changed = y != x
    assert changed[:, :2, 3:11].all()
    assert not changed[:, 2:].any()
    assert not changed[..., :3].any()
    assert not changed[..., 11:].any()


def test_tensors_without_elements_keep_their_shape():
    for shape in [(0, 2, 8), (3, 0, 8), (0, 3, 2, 8)]:
        tokens = shape[-3]
        assert reference.rotate(torch.empty(shape), *angle_tables(tokens, 4)).shape == shape
    assert reference.rotate(torch.empty(2, 0, 16), *angle_tables(0, 4), head_dim=8).numel() == 0


def test_reference_is_differentiable():
    x = integers(2, 3, 2, 8).requires_grad_()
    cos, sin = angle_tables(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: reference.rotate(x, cos, sin, start=2), x)

"""Frequencies that are learned: MixedRotaryEmbedding, and learnable=True."""

from __future__ import annotations

import copy

import pytest
import torch
from inputs import DTYPES, name, normal
from tolerance import assert_same_bits
from torch import Tensor, nn
from turned import assert_turned

from rope_ext import AxialRotaryEmbedding, MixedRotaryEmbedding, RotaryEmbedding
from rope_ext.frequencies import axial, mixed, standard
from rope_ext.positions import grid, normalised

HEAD_DIM, HEADS = 16, 3


def made(**options: object) -> MixedRotaryEmbedding:
    generator = torch.Generator().manual_seed(0)
    return MixedRotaryEmbedding(HEAD_DIM, HEADS, generator=generator, **options)


LEARNED = {
    "RotaryEmbedding": lambda: RotaryEmbedding(HEAD_DIM, learnable=True),
    "AxialRotaryEmbedding": lambda: AxialRotaryEmbedding(HEAD_DIM, learnable=True),
    "MixedRotaryEmbedding": made,
}
every_learned = pytest.mark.parametrize("build", LEARNED.values(), ids=LEARNED)


def positions_for(module: nn.Module) -> Tensor:
    return torch.arange(6) if type(module) is RotaryEmbedding else grid(2, 3)


@every_learned
def test_frequencies_are_a_float32_parameter_that_is_stored(build):
    module = build()
    assert list(module.state_dict()) == ["frequencies"]
    assert module.frequencies.dtype == torch.float32
    assert list(module.buffers()) == []
    other = build()
    with torch.no_grad():
        other.frequencies.zero_()
    other.load_state_dict(module.state_dict())
    assert_same_bits(other.frequencies.detach(), module.frequencies.detach())
    assert_same_bits(module.inv_freq, module.frequencies.detach())


@every_learned
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_learned_frequencies_turn_as_the_reference_says(build, dtype: torch.dtype):
    module = build()
    positions = positions_for(module)
    query = normal(2, 6, HEADS, HEAD_DIM, dtype=dtype)
    for given in (positions, positions + 0.25):
        new_query, new_key = module(query.clone(), query.clone(), given)
        assert_turned(new_query.detach(), query, given, module.frequencies.detach().double())
        assert_same_bits(new_query, new_key)


@every_learned
@pytest.mark.parametrize("inplace", [True, False])
def test_gradients_of_frequencies_are_those_of_autograd(build, inplace: bool):
    """Against the definition, written in torch's own operations and float64."""
    module = build().double()
    module.inplace = inplace
    positions = positions_for(module)
    leaves = [normal(2, 6, HEADS, HEAD_DIM, dtype=torch.float64, seed=s) for s in (0, 1)]
    incoming = normal(2, 6, HEADS, HEAD_DIM, dtype=torch.float64, seed=2)

    query, key = module(*(leaf.clone() for leaf in leaves), positions)
    actual = torch.autograd.grad((query * key * incoming).sum(), module.frequencies)[0]

    frequencies = module.frequencies.detach().clone().requires_grad_()
    if type(module) is RotaryEmbedding:
        angles = torch.outer(positions.double(), frequencies).unsqueeze(-2)
    else:
        matrix = frequencies.reshape(2, -1, HEAD_DIM // 2)
        angles = torch.einsum("sa,ahp->shp", positions.double(), matrix)
    turned = []
    for leaf in leaves:
        x, y = leaf.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        turned.append(torch.cat((x * cos - y * sin, x * sin + y * cos), dim=-1))
    wanted = torch.autograd.grad((turned[0] * turned[1] * incoming).sum(), frequencies)[0]
    torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11)


@every_learned
def test_what_was_learned_survives_a_move_and_a_copy(build):
    module = build()
    with torch.no_grad():
        module.frequencies.add_(0.125)
    learned = module.frequencies.detach().clone()
    moved = copy.deepcopy(module).double().to("cpu").float()
    assert_same_bits(moved.frequencies.detach(), learned)
    assert not torch.equal(moved.inv_freq, moved.original_inv_freq)
    moved.reset_parameters()
    assert_same_bits(moved.frequencies.detach(), build().frequencies.detach())
    assert_same_bits(moved.inv_freq, moved.original_inv_freq)


@every_learned
def test_a_model_cast_to_bfloat16_still_rotates(build):
    module = build().bfloat16()
    x = normal(6, HEADS, HEAD_DIM, dtype=torch.bfloat16)
    actual = module(x.clone(), positions=positions_for(module))
    rounded = module.frequencies.detach().double()
    assert_turned(actual.detach(), x, positions_for(module), rounded)


@every_learned
def test_a_module_made_on_the_meta_device_is_reset_by_hand(build):
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu").reset_parameters()
    assert_same_bits(module.frequencies.detach(), build().frequencies.detach())


def test_learnable_frequencies_begin_as_the_others():
    begun = RotaryEmbedding(HEAD_DIM, learnable=True).frequencies
    assert_same_bits(begun.detach(), standard(HEAD_DIM).float())
    begun = AxialRotaryEmbedding(HEAD_DIM, learnable=True, bases=100.0).frequencies
    assert_same_bits(begun.detach(), axial((8, 8), 100.0).float())
    drawn = mixed((8, 8), HEADS, generator=torch.Generator().manual_seed(0))
    assert_same_bits(made().frequencies.detach(), drawn.float())


def test_mixed_frequencies_may_stay_as_they_are_drawn():
    module = made(learnable=False, prefix_tokens=1, coordinates=normalised)
    assert list(module.parameters()) == []
    drawn = mixed((8, 8), HEADS, generator=torch.Generator().manual_seed(0))
    x = normal(7, HEADS, HEAD_DIM)
    positions = torch.cat((torch.zeros(1, 2), grid(normalised(2), normalised(3))))
    assert_turned(module(x.clone(), None, (2, 3)), x, positions, drawn)


def test_mixed_heads_come_in_the_order_of_the_tensor():
    x = normal(2, HEADS, 6, HEAD_DIM)
    actual = made(seq_dim=-2)(x.clone(), None, (2, 3)).detach()
    assert_turned(actual, x, grid(2, 3), made().frequencies.detach().double(), seq_dim=-2)


def test_mixed_frequencies_need_as_many_key_heads():
    x = normal(6, HEADS, HEAD_DIM)
    with pytest.raises(ValueError, match=r"^key must have the 3 heads of angles"):
        made()(x, x[:, :1].clone(), (2, 3))


@every_learned
def test_learned_frequencies_find_those_that_made_the_data(build):
    """The loss falls a hundredfold."""
    torch.manual_seed(0)
    teacher, module = build(), build()
    with torch.no_grad():
        teacher.frequencies.add_(0.05 * torch.randn_like(teacher.frequencies))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    x, positions = normal(6, HEADS, HEAD_DIM), positions_for(module)
    target = teacher(x.clone(), positions=positions).detach()
    losses = []
    for _ in range(200):
        loss = (module(x.clone(), positions=positions) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100

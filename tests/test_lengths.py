"""Scalings that depend on the length: decided on the device, for all sequences or for each."""

from __future__ import annotations

import pytest
import torch
from inputs import DTYPES, name, normal
from tolerance import assert_same_bits
from torch import Tensor
from turned import assert_turned

from rope_ext import RotaryEmbedding, frequencies
from rope_ext.scaling import DynamicNTK, LongRoPE, Pinned, Scaling

TOKENS, HEAD_DIM, CONTEXT = 6, 16, 8
STANDARD = frequencies.standard(HEAD_DIM)
RULES = {
    "DynamicNTK": DynamicNTK(2.0, CONTEXT),
    "LongRoPE": LongRoPE((1.0,) * 8, tuple(range(2, 10)), CONTEXT, factor=4.0),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def expected(rule: Scaling, length: int) -> tuple[Tensor, float]:
    return rule(STANDARD, length)


@every_rule
def test_the_largest_position_decides_unless_told(rule: Scaling):
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule)
    x = normal(2, TOKENS, 3, HEAD_DIM)
    for first in (0, 1, 2, 3, 100, -100):
        positions = torch.arange(first, first + TOKENS)
        actual = rotary(x.clone(), positions=positions)
        assert_turned(actual, x, positions, *expected(rule, first + TOKENS))
    both = torch.stack((torch.arange(TOKENS), 100 + torch.arange(TOKENS)))
    assert_turned(rotary(x.clone(), positions=both), x, both, *expected(rule, 100 + TOKENS))


@every_rule
def test_the_number_of_tokens_decides_where_there_are_no_positions(rule: Scaling):
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule)
    for tokens in (CONTEXT, CONTEXT + 1, 50, 3):
        x = normal(tokens, 3, HEAD_DIM)
        assert_turned(rotary(x.clone()), x, None, *expected(rule, tokens))
        packed = normal(tokens, 3 * HEAD_DIM)
        assert_turned(
            rotary.forward_packed(packed.clone(), 1, 1),
            packed,
            None,
            *expected(rule, tokens),
            head_dim=HEAD_DIM,
            num_heads=2,
        )


@every_rule
@pytest.mark.parametrize("length", [3, CONTEXT, CONTEXT + 1, 100])
def test_a_length_may_be_a_number_or_a_tensor(rule: Scaling, length: int):
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule)
    x = normal(2, TOKENS, 3, HEAD_DIM)
    for given in (length, torch.tensor(length), torch.tensor(length, dtype=torch.int32)):
        for positions in (None, torch.randint(-9, 9, (2, TOKENS)), torch.rand(TOKENS)):
            actual = rotary(x.clone(), positions=positions, length=given)
            assert_turned(actual, x, positions, *expected(rule, length))


@every_rule
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("seq_dim", [-3, -2], ids=["tokens first", "heads first"])
def test_every_sequence_may_have_a_length_of_its_own(
    rule: Scaling, seq_dim: int, dtype: torch.dtype
):
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule, seq_dim=seq_dim)
    lengths = torch.tensor([3, CONTEXT + 1, 100])
    x = normal(3, TOKENS, 2, HEAD_DIM, dtype=dtype)
    if seq_dim == -2:
        x = x.transpose(1, 2)
    for positions in (None, torch.arange(TOKENS) - 2, torch.randint(-99, 99, (3, TOKENS))):
        query, key = rotary(x.clone(), x.clone(), positions, length=lengths)
        assert_same_bits(query, key)
        for row, length in enumerate(lengths.tolist()):
            own = positions[row] if positions is not None and positions.dim() == 2 else positions
            assert_turned(query[row], x[row], own, *expected(rule, length), seq_dim=seq_dim)


@every_rule
def test_a_packed_projection_has_lengths_too(rule: Scaling):
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule)
    packed = normal(2, TOKENS, 3 * HEAD_DIM)
    actual = rotary.forward_packed(packed.clone(), 1, 1, length=torch.tensor([3, 100]))
    for row, length in enumerate((3, 100)):
        options = {"head_dim": HEAD_DIM, "num_heads": 2}
        assert_turned(actual[row], packed[row], None, *expected(rule, length), **options)


@every_rule
def test_a_pinned_length_stays_while_a_sequence_grows(rule: Scaling):
    rotary = RotaryEmbedding(HEAD_DIM, scaling=Pinned(rule, 100))
    x = normal(TOKENS, 2, HEAD_DIM)
    whole = rotary(x.clone())
    for token in range(TOKENS):
        alone = rotary(x[token : token + 1].clone(), positions=torch.tensor([token]))
        assert_same_bits(alone, whole[token : token + 1])
    assert_turned(whole, x, None, *expected(rule, 100))
    assert_same_bits(rotary.inv_freq, expected(rule, 100)[0].float())


@every_rule
def test_no_tokens_are_no_error(rule: Scaling):
    x = normal(2, 0, 3, HEAD_DIM)
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule)
    assert rotary(x.clone(), positions=torch.zeros(0, dtype=torch.int64)).shape == x.shape


@every_rule
def test_nothing_is_read_on_the_host(rule: Scaling):
    """The meta device has no values to read."""
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule).to("meta")
    x = torch.empty(2, TOKENS, 3, HEAD_DIM, device="meta")
    positions = torch.empty(2, TOKENS, dtype=torch.int64, device="meta")
    for length in (None, torch.empty((), dtype=torch.int64, device="meta"), positions[:, 0]):
        assert rotary(x, positions=positions, length=length) is x


@every_rule
def test_a_length_is_of_no_matter_to_other_rules(rule: Scaling):
    x = normal(TOKENS, 2, HEAD_DIM)
    rotary = RotaryEmbedding(HEAD_DIM)
    assert_same_bits(rotary(x.clone(), length=100), rotary(x.clone()))


@every_rule
def test_a_rule_that_depends_on_the_length_needs_one_axis_that_is_not_learned(rule: Scaling):
    for options in ({"learnable": True}, {"frequencies": torch.rand(2, 8)}):
        with pytest.raises(ValueError, match=r"^scaling must be pinned"):
            RotaryEmbedding(HEAD_DIM, scaling=rule, **options)
    RotaryEmbedding(HEAD_DIM, scaling=Pinned(rule, 100), learnable=True)


@every_rule
def test_queries_are_trained_through_lengths_of_their_own(rule: Scaling):
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule)
    leaf = normal(2, TOKENS, 2, HEAD_DIM).requires_grad_()
    rotary(leaf * 1, length=torch.tensor([3, 100])).sum().backward()
    ones = torch.ones(TOKENS, 2, HEAD_DIM)
    for row, length in enumerate((3, 100)):
        assert_turned(leaf.grad[row], ones, None, *expected(rule, length), inverse=True)

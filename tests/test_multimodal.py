"""MRotaryEmbedding: positions in time, height and width."""

from __future__ import annotations

import pytest
import torch
from inputs import DTYPES, name, normal
from tolerance import assert_same_bits
from turned import assert_turned

from rope_ext import MRotaryEmbedding, RotaryEmbedding, scaling
from rope_ext.frequencies import sections, standard
from rope_ext.positions import grid, multimodal

HEAD_DIM = 16
ORDERS = {"chunked": (2, 3, 3), "interleaved": (4, 2, 2), "alternating": (3, 3, 2)}
every_order = pytest.mark.parametrize(("order", "sizes"), ORDERS.items(), ids=ORDERS)


@every_order
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_pictures_in_text_rotate_as_the_reference_says(order, sizes, dtype: torch.dtype):
    rope = MRotaryEmbedding(HEAD_DIM, sizes, order=order, base=500.0)
    positions = multimodal(3, grid(1, 2, 3), 4)
    query = normal(2, len(positions), 4, HEAD_DIM, dtype=dtype)
    radians = sections(standard(HEAD_DIM, 500.0), sizes, order)
    new_query, new_key = rope(query.clone(), query[:, :, :1].clone(), positions)
    assert_turned(new_query, query, positions, radians)
    assert_turned(new_key, query[:, :, :1], positions, radians)


@every_order
def test_text_turns_as_if_there_were_one_axis(order, sizes):
    rope = MRotaryEmbedding(HEAD_DIM, sizes, order=order)
    x = normal(2, 5, 3, HEAD_DIM)
    positions = torch.tensor([7, -1, 2**40, 0, 3])
    expected = RotaryEmbedding(HEAD_DIM)(x.clone(), positions=positions)
    every_axis = positions.unsqueeze(-1).expand(2, -1, 3)
    for given in (positions, every_axis):
        assert_same_bits(rope(x.clone(), positions=given), expected)
    assert_same_bits(rope(x.clone()), RotaryEmbedding(HEAD_DIM)(x.clone()))


def test_positions_of_a_batch_need_their_axis():
    x = normal(2, 5, 3, HEAD_DIM)
    with pytest.raises(ValueError, match=r"^positions must"):
        MRotaryEmbedding(HEAD_DIM, (2, 3, 3))(x, positions=torch.zeros(2, 5, dtype=torch.int64))


def test_frequencies_are_scaled_before_they_are_dealt():
    rule = scaling.YaRN(4.0, 64)
    rope = MRotaryEmbedding(HEAD_DIM, (2, 3, 3), scaling=rule)
    radians, factor = rule(standard(HEAD_DIM))
    positions = multimodal(3, grid(1, 2, 3), 4)
    x = normal(len(positions), 2, HEAD_DIM)
    actual = rope(x.clone(), positions=positions)
    assert_turned(actual, x, positions, sections(radians, (2, 3, 3)), factor)
    assert rope.rope_type == "yarn"
    assert rope.attention_scaling == factor
    assert_same_bits(rope.inv_freq, radians.float())
    assert_same_bits(rope.original_inv_freq, radians.float())


def test_a_rule_that_depends_on_the_length_is_refused_unless_pinned():
    rule = scaling.DynamicNTK(2.0, 64)
    with pytest.raises(ValueError, match=r"^scaling must be pinned"):
        MRotaryEmbedding(HEAD_DIM, (2, 3, 3), scaling=rule)
    rope = MRotaryEmbedding(HEAD_DIM, (2, 3, 3), scaling=scaling.Pinned(rule, 100))
    assert_same_bits(rope.inv_freq, rule(standard(HEAD_DIM), 100)[0].float())


CONFIG = {"hidden_size": 64, "num_attention_heads": 4}
PARAMETERS = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [4, 2, 2]}


def test_a_configuration_of_transformers_gives_its_rotation():
    parameters = {**PARAMETERS, "mrope_interleaved": True}
    rope = MRotaryEmbedding.from_hf_config({**CONFIG, "rope_parameters": parameters})
    positions = multimodal(3, grid(1, 2, 3), 4)
    x = normal(len(positions), 2, HEAD_DIM)
    radians = sections(standard(HEAD_DIM, 500.0), (4, 2, 2), "interleaved")
    assert_turned(rope(x.clone(), positions=positions), x, positions, radians)


def test_a_configuration_without_sections_is_refused():
    parameters = {"rope_type": "default", "rope_theta": 500.0}
    with pytest.raises(ValueError, match=r"^config must have an mrope_section"):
        MRotaryEmbedding.from_hf_config({**CONFIG, "rope_parameters": parameters})


def test_a_packed_projection_takes_positions_of_text():
    packed = normal(5, 4 * HEAD_DIM)
    rope = MRotaryEmbedding(HEAD_DIM, (2, 3, 3))
    expected = RotaryEmbedding(HEAD_DIM).forward_packed(packed.clone(), 2, 1, torch.arange(5))
    assert_same_bits(rope.forward_packed(packed.clone(), 2, 1, torch.arange(5)), expected)

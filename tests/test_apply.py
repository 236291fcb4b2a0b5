"""What ``rope::apply`` and ``rope_ext.apply_`` promise beyond the numbers."""

import math

import pytest
import torch
from inputs import DTYPES, angle_tables, name, normal, strided
from recorder import Recorder
from tolerance import assert_rotated, assert_same_bits, bits

import rope_ext

pytestmark = pytest.mark.usefixtures("device")

APPLY = torch.ops.rope.apply


def a_call(dtype: torch.dtype = torch.float32):
    """A query, a key and tables for them: 2 sequences of 5 tokens, 4 and 2 heads of 16."""
    query, key = normal(2, 5, 4, 16, dtype=dtype, seed=3), normal(2, 5, 2, 16, dtype=dtype, seed=4)
    return query, key, *angle_tables(5, 8)


def test_the_schema_is_the_contracts():
    assert str(APPLY.default._schema) == (
        "rope::apply(Tensor(a!) query, Tensor(b!)? key, Tensor cos, Tensor sin, "
        "Tensor? positions=None, int seq_dim=-3, int? head_dim=None, int? num_heads=None, "
        "int start=0, bool interleaved=False, bool inverse=False) -> ()"
    )


def test_there_is_no_out_overload():
    assert APPLY.overloads() == ["default"]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_the_operator_rotates_in_place_and_returns_nothing(dtype: torch.dtype):
    query, key, cos, sin = a_call(dtype)
    new_query, new_key = query.clone(), key.clone()
    addresses = new_query.data_ptr(), new_key.data_ptr()
    assert APPLY(new_query, new_key, cos, sin) is None
    assert (new_query.data_ptr(), new_key.data_ptr()) == addresses
    assert_rotated(new_query, query, cos, sin)
    assert_rotated(new_key, key, cos, sin)


def test_apply_returns_the_tensors_that_it_was_given():
    query, key, cos, sin = a_call()
    result = rope_ext.apply_(query, key, cos, sin)
    assert isinstance(result, tuple)
    assert result[0] is query
    assert result[1] is key


def test_apply_without_key_returns_the_query_alone():
    query, _, cos, sin = a_call()
    before = query.clone()
    assert rope_ext.apply_(query, None, cos, sin) is query
    assert_rotated(query, before, cos, sin)


def test_keywords_reach_the_operator_in_the_order_of_the_schema():
    packed = normal(2, 5, 6 * 16)
    cos, sin = angle_tables(9, 3)
    positions = torch.tensor([8, 0, 3, 3, 1])
    by_position, by_keyword, by_wrapper = packed.clone(), packed.clone(), packed.clone()
    options = {"head_dim": 16, "num_heads": 4, "start": 5, "interleaved": True, "inverse": True}
    APPLY(by_position, None, cos, sin, positions, -3, 16, 4, 5, True, True)
    APPLY(by_keyword, None, cos, sin, positions=positions, seq_dim=-3, **options)
    rope_ext.apply_(by_wrapper, None, cos, sin, positions, seq_dim=-3, **options)
    assert_rotated(by_position, packed, cos, sin, positions, **options)
    assert_same_bits(by_keyword, by_position)
    assert_same_bits(by_wrapper, by_position)


def test_defaults_are_half_split_forward_tokens_third_from_last():
    query, _, cos, sin = a_call()
    defaults, spelled_out = query.clone(), query.clone()
    APPLY(defaults, None, cos, sin)
    APPLY(spelled_out, None, cos, sin, None, -3, None, None, 0, False, False)
    assert_same_bits(defaults, spelled_out)


def test_options_of_the_wrapper_take_keywords_only():
    query, key, cos, sin = a_call()
    with pytest.raises(TypeError):
        rope_ext.apply_(query, key, cos, sin, None, -3)


def test_query_and_key_rotate_as_if_alone():
    query, key, cos, sin = a_call(torch.bfloat16)
    alone_query, alone_key = query.clone(), key.clone()
    rope_ext.apply_(alone_query, None, cos, sin)
    rope_ext.apply_(alone_key, None, cos, sin)
    rope_ext.apply_(query, key, cos, sin)
    assert_same_bits(query, alone_query)
    assert_same_bits(key, alone_key)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_query_and_key_may_have_different_strides(dtype: torch.dtype):
    query, key, cos, sin = a_call(dtype)
    query_view, query_base = strided(query, order=(2, 0, 1, 3), padding=(0, 1, 1, 3))
    key_view, key_base = strided(key, steps=(1, 1, 2, 2))
    rope_ext.apply_(query_view, key_view, cos, sin)
    assert_rotated(query_view, query, cos, sin)
    assert_rotated(key_view, key, cos, sin)
    for view, base in ((query_view, query_base), (key_view, key_base)):
        view.fill_(math.nan)
        assert base.isnan().all()


def test_query_and_key_may_be_slices_of_one_tensor():
    packed = normal(2, 5, 8, 16)
    before = packed.clone()
    cos, sin = angle_tables(5, 8)
    rope_ext.apply_(packed[:, :, :4], packed[:, :, 4:6], cos, sin)
    assert_rotated(packed, before, cos, sin, num_heads=6)


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["tokens", "heads", "elements"])
def test_query_and_key_may_alternate_in_memory(dim: int):
    both = normal(10, 8, 32)
    cos, sin = angle_tables(10, 8)
    even, odd = ([slice(None)] * 3 for _ in range(2))
    even[dim], odd[dim] = slice(0, None, 2), slice(1, None, 2)
    query, key = both[tuple(even)], both[tuple(odd)]
    old_query, old_key = query.clone(), key.clone()
    rope_ext.apply_(query, key, cos, sin)
    assert_rotated(query, old_query, cos, sin)
    assert_rotated(key, old_key, cos, sin)


def test_tables_and_positions_are_left_alone():
    query, key, _, _ = a_call()
    cos, sin = angle_tables(9, 8)
    positions = torch.tensor([8, 0, 3, 3, 1])
    kept = [tensor.clone() for tensor in (cos, sin, positions)]
    rope_ext.apply_(query, key, cos, sin, positions)
    assert all(map(torch.equal, (cos, sin, positions), kept))
    assert [tensor._version for tensor in (cos, sin, positions)] == [0, 0, 0]


def test_inverse_undoes_rotation():
    query, key, _, _ = a_call(torch.float64)
    cos, sin = angle_tables(5, 8, dtype=torch.float64)
    new_query, new_key = query.clone(), key.clone()
    rope_ext.apply_(new_query, new_key, cos, sin)
    assert not torch.allclose(new_query, query)
    rotated_query = new_query.clone()
    rope_ext.apply_(new_query, new_key, cos, sin, inverse=True)
    assert_rotated(new_query, rotated_query, cos, sin, inverse=True)
    # cos^2 + sin^2 is 1 to within an eps, and either way rounds twice: half an eps each time,
    # of a sum of two products that is less than twice the longer coordinate.
    error = 5 * torch.finfo(torch.float64).eps * max(query.abs().max(), key.abs().max())
    torch.testing.assert_close(new_query, query, rtol=0, atol=float(error))
    torch.testing.assert_close(new_key, key, rtol=0, atol=float(error))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_versions_are_bumped_in_every_mode(mode):
    query, key, cos, sin = a_call()
    with mode():
        rope_ext.apply_(query, key, cos, sin)
    assert (query._version, key._version) == (1, 1)
    with mode():
        rope_ext.apply_(query, None, cos, sin)
    assert (query._version, key._version) == (2, 1)


def test_versions_are_shared_with_the_base_of_a_view():
    packed = normal(2, 5, 8, 16)
    cos, sin = angle_tables(5, 8)
    rope_ext.apply_(packed[:, :, :4], None, cos, sin)
    assert packed._version == 1


def test_tensors_made_in_inference_mode_rotate_there():
    with torch.inference_mode():
        query, key, cos, sin = a_call()
        before = query.clone()
        rope_ext.apply_(query, key, cos, sin)
        assert_rotated(query, before, cos, sin)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_one_operator_runs_and_no_copy_is_made(requires_grad: bool):
    query, key, _, _ = a_call(torch.bfloat16)
    cos, sin = angle_tables(9, 8, dtype=torch.float64)
    cos, _ = strided(cos, order=(1, 0), steps=(2, 1))
    query = query.requires_grad_(requires_grad).clone().transpose(1, 2)
    key, _ = strided(key.transpose(1, 2), steps=(1, 1, 1, 2))
    positions = torch.tensor([8, 0, 3, 3, 1])
    with Recorder() as recorder:
        rope_ext.apply_(query, key, cos, sin, positions, seq_dim=-2)
    assert recorder.names == ["rope.apply.default"]


def test_memory_beside_the_query_is_left_alone():
    base = torch.full((3, 5, 4, 16), math.nan)
    base[1] = normal(5, 4, 16)
    before = base.clone()
    cos, sin = angle_tables(5, 8)
    rope_ext.apply_(base[1], None, cos, sin)
    assert torch.equal(bits(base[::2]), bits(before[::2]))
    assert_rotated(base[1], before[1], cos, sin)


@pytest.mark.parametrize("seq_dim", [-3, -2])
def test_a_head_axis_of_one_serves_query_and_key_of_any_heads(seq_dim: int):
    cos, sin = (table.unsqueeze(2) for table in angle_tables(2, 5, 4))
    query, key = normal(2, 5, 4, 8), normal(2, 5, 2, 8, seed=1)
    if seq_dim == -2:
        query, key, cos, sin = (x.transpose(1, 2) for x in (query, key, cos, sin))
    turned = rope_ext.apply_(query.clone(), key.clone(), cos, sin, seq_dim=seq_dim)
    for new_x, x in zip(turned, (query, key), strict=True):
        assert_rotated(new_x, x, cos, sin, seq_dim=seq_dim)

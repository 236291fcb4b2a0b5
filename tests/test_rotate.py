"""What ``rope::rotate`` and ``rope_ext.rotate`` promise beyond the numbers."""

import pytest
import torch
from inputs import DTYPES, angle_tables, name, normal, strided
from recorder import Recorder
from tolerance import assert_rotated, assert_same_bits, bits

import rope_ext

pytestmark = pytest.mark.usefixtures("device")

ROTATE = torch.ops.rope.rotate


def test_the_schema_is_the_contracts():
    assert str(ROTATE.default._schema) == (
        "rope::rotate(Tensor x, Tensor cos, Tensor sin, Tensor? positions=None, int seq_dim=-3, "
        "int? head_dim=None, int? num_heads=None, int start=0, bool interleaved=False, "
        "bool inverse=False) -> Tensor"
    )


def test_there_is_no_out_overload():
    assert ROTATE.overloads() == ["default"]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_the_result_is_a_new_tensor_and_x_keeps_its_bits(dtype: torch.dtype):
    x = normal(2, 5, 4, 16, dtype=dtype)
    before = x.clone()
    cos, sin = angle_tables(5, 8)
    y = rope_ext.rotate(x, cos, sin)
    assert y.dtype == dtype
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert torch.equal(bits(x), bits(before))
    assert x._version == 0
    assert_rotated(y, x, cos, sin)


def test_a_rotation_of_nothing_is_still_a_new_tensor():
    x = normal(2, 5, 4, 16)
    for y in (
        rope_ext.rotate(x, torch.empty(5, 0), torch.empty(5, 0)),
        rope_ext.rotate(x, *angle_tables(5, 8), num_heads=0),
    ):
        assert torch.equal(y, x)
        y.zero_()
        assert x.any()


LAYOUTS = {
    "contiguous": {},
    "heads before tokens": {"order": (0, 2, 1, 3)},
    "tokens outermost": {"order": (1, 0, 2, 3)},
    "elements outermost": {"order": (3, 1, 2, 0)},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("strides", LAYOUTS.values(), ids=LAYOUTS)
def test_the_result_has_the_memory_format_of_x(strides: dict, dtype: torch.dtype):
    x, _ = strided(normal(2, 5, 4, 16, dtype=dtype), **strides)
    cos, sin = angle_tables(5, 8)
    y = rope_ext.rotate(x, cos, sin)
    assert y.stride() == x.stride()
    assert_rotated(y, x, cos, sin)


@pytest.mark.parametrize(
    "strides",
    [{"steps": (1, 2, 1, 1)}, {"steps": (1, 1, 1, 2)}, {"order": (0, 2, 1, 3), "padding": [2] * 4}],
    ids=["tokens apart", "elements apart", "transposed slice"],
)
def test_the_result_of_a_slice_is_laid_out_as_empty_like_does(strides: dict):
    x, _ = strided(normal(2, 5, 4, 16), **strides)
    cos, sin = angle_tables(5, 8)
    y = rope_ext.rotate(x, cos, sin)
    assert y.stride() == torch.empty_like(x).stride()
    assert_rotated(y, x, cos, sin)


def test_expanded_x_is_accepted_because_nothing_is_written_to_it():
    x = normal(1, 5, 4, 16).expand(3, 5, 4, 16)
    cos, sin = angle_tables(3, 5, 8)
    assert_rotated(rope_ext.rotate(x, cos, sin), x, cos, sin)


def test_x_may_serve_as_its_own_table():
    x = normal(5, 1, 2)
    table = x[:, 0, :1]
    assert_rotated(rope_ext.rotate(x, table, table), x, table, table)


def test_keywords_reach_the_operator_in_the_order_of_the_schema():
    x = normal(2, 5, 6 * 16)
    cos, sin = angle_tables(9, 3)
    positions = torch.tensor([8, 0, 3, 3, 1])
    options = {"head_dim": 16, "num_heads": 4, "start": 5, "interleaved": True, "inverse": True}
    by_position = ROTATE(x, cos, sin, positions, -3, 16, 4, 5, True, True)
    by_keyword = ROTATE(x, cos, sin, positions=positions, seq_dim=-3, **options)
    by_wrapper = rope_ext.rotate(x, cos, sin, positions, seq_dim=-3, **options)
    assert_rotated(by_position, x, cos, sin, positions, **options)
    assert_same_bits(by_keyword, by_position)
    assert_same_bits(by_wrapper, by_position)


def test_options_of_the_wrapper_take_keywords_only():
    with pytest.raises(TypeError):
        rope_ext.rotate(normal(5, 4, 16), *angle_tables(5, 8), None, -3)


def test_a_leaf_that_requires_grad_is_accepted():
    x = normal(5, 4, 16).requires_grad_()
    cos, sin = angle_tables(5, 8)
    y = rope_ext.rotate(x, cos, sin)
    assert y.requires_grad
    assert_rotated(y.detach(), x.detach(), cos, sin)


def test_one_operator_runs_and_not_a_clone():
    x, _ = strided(normal(2, 5, 4, 16), steps=(1, 1, 1, 2))
    cos, sin = angle_tables(5, 8)
    with Recorder() as recorder:
        rope_ext.rotate(x, cos, sin)
    assert recorder.names == ["rope.rotate.default"]

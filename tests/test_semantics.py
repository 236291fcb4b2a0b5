"""The matrix of the contract, in place and functional, each against the float64 reference.

Dtypes, pairings, layouts, forms of tables, strides, partial rotation, and special numbers.
"""

import math

import pytest
import torch
from inputs import (
    DTYPES,
    FORMS,
    LAYOUTS,
    ROWS,
    Angles,
    Layout,
    angle_tables,
    name,
    normal,
    strided,
    token_positions,
)
from tolerance import assert_rotated, assert_same_bits, bits

import rope_ext

pytestmark = pytest.mark.usefixtures("device")


def assert_both_spellings_rotate(x, cos, sin, positions=None, **options):
    """Check ``rotate`` and ``apply_`` on ``x`` against the reference, and on one another."""
    functional = rope_ext.rotate(x, cos, sin, positions, **options)
    assert_rotated(functional, x, cos, sin, positions, **options)
    in_place = x.clone()
    rope_ext.apply_(in_place, None, cos, sin, positions, **options)
    assert_same_bits(in_place, functional)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize(("layout", "angles"), FORMS)
def test_query_and_key_rotate_in_every_form(
    layout: Layout, angles: Angles, interleaved: bool, dtype: torch.dtype
):
    tokens, heads, head_dim = 5, 3, 32
    cos, sin, positions = angles(layout, tokens, heads, head_dim // 2, torch.float32)
    key_heads = heads if cos.dim() == len(layout.leading) + 3 else 2
    query = normal(*layout.shape(tokens, heads, head_dim), dtype=dtype, seed=3)
    key = normal(*layout.shape(tokens, key_heads, head_dim), dtype=dtype, seed=4)
    options = {**layout.options(head_dim), "interleaved": interleaved}

    new_query, new_key = query.clone(), key.clone()
    rope_ext.apply_(new_query, new_key, cos, sin, positions, **options)
    assert_rotated(new_query, query, cos, sin, positions, **options)
    assert_rotated(new_key, key, cos, sin, positions, **options)
    assert_same_bits(rope_ext.rotate(query, cos, sin, positions, **options), new_query)
    assert_same_bits(rope_ext.rotate(key, cos, sin, positions, **options), new_key)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize(
    ("start", "pairs"),
    [(0, 16), (0, 4), (24, 4), (9, 4), (7, 5), (31, 1), (38, 1), (0, 0)],
    ids=["whole", "leading", "trailing", "middle", "odd", "one pair", "last pair", "no pair"],
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_pairs_anywhere_in_a_head_rotate(
    layout: Layout, start: int, pairs: int, interleaved: bool, inverse: bool, dtype: torch.dtype
):
    tokens, heads, head_dim = 3, 2, max(32, start + 2 * pairs)
    x = normal(*layout.shape(tokens, heads, head_dim), dtype=dtype)
    options = {
        **layout.options(head_dim),
        "start": start,
        "interleaved": interleaved,
        "inverse": inverse,
    }
    assert_both_spellings_rotate(x, *angle_tables(tokens, pairs), **options)


@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64, None], ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
def test_tables_are_float32_or_float64_or_of_the_querys_dtype(
    interleaved: bool, dtype: torch.dtype, table_dtype: torch.dtype | None
):
    x = normal(2, 5, 2, 78, dtype=dtype)
    tables = angle_tables(5, 39, dtype=table_dtype or dtype)
    assert_both_spellings_rotate(x, *tables, interleaved=interleaved)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("pairs", [*range(1, 71), 256, 513, 600])
def test_every_number_of_pairs_rotates(pairs: int, interleaved: bool, dtype: torch.dtype):
    x = normal(2, 3, 2 * pairs + 1, dtype=dtype)
    assert_both_spellings_rotate(x, *angle_tables(2, pairs), interleaved=interleaved)


STRIDES = {
    "transposed heads and tokens": {"order": (0, 2, 1, 3)},
    "transposed batch and tokens": {"order": (1, 0, 2, 3)},
    "elements outermost": {"order": (3, 0, 1, 2)},
    "elements two apart": {"steps": (1, 1, 1, 2)},
    "elements three apart": {"steps": (1, 1, 1, 3), "padding": (0, 0, 0, 1)},
    "every other token": {"steps": (1, 2, 1, 1)},
    "every other head": {"steps": (1, 1, 2, 1)},
    "every other batch": {"steps": (2, 1, 1, 1)},
    "unaligned rows": {"padding": (0, 0, 0, 1)},
    "slices of everything": {"steps": (2, 3, 2, 1), "padding": (1, 1, 1, 5)},
    "slices of everything, transposed": {
        "order": (2, 0, 3, 1),
        "steps": (2, 3, 2, 3),
        "padding": (1, 2, 1, 1),
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=name)
@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
def test_any_strides_give_the_bits_of_a_contiguous_tensor_and_spare_the_rest(
    strides: dict, layout: Layout, interleaved: bool, dtype: torch.dtype
):
    x = normal(*layout.shape(5, 3, 40), dtype=dtype)
    cos, sin = angle_tables(5, 16)
    options = {**layout.options(40), "start": 3, "interleaved": interleaved}
    expected = rope_ext.rotate(x, cos, sin, **options)
    assert_rotated(expected, x, cos, sin, **options)

    view, base = strided(x, **strides)
    before = base.clone()
    assert_same_bits(rope_ext.rotate(view, cos, sin, **options), expected)
    assert torch.equal(bits(base), bits(before))
    rope_ext.apply_(view, None, cos, sin, **options)
    assert_same_bits(view, expected)
    view.fill_(math.nan)
    assert base.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
def test_a_flat_slice_with_elements_apart_rotates(interleaved: bool, dtype: torch.dtype):
    x = normal(2, 5, 3 * 16, dtype=dtype)
    cos, sin = angle_tables(5, 8)
    options = {"head_dim": 16, "interleaved": interleaved}
    expected = rope_ext.rotate(x, cos, sin, **options)
    view, _ = strided(x, order=(1, 0, 2), steps=(1, 2, 3), padding=(1, 1, 2))
    rope_ext.apply_(view, None, cos, sin, **options)
    assert_same_bits(view, expected)


TABLE_STRIDES = {
    "transposed": {"order": (1, 0)},
    "columns apart": {"steps": (1, 2)},
    "rows apart": {"steps": (3, 1), "padding": (1, 3)},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=name)
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64, None], ids=name)
@pytest.mark.parametrize("strides", TABLE_STRIDES.values(), ids=TABLE_STRIDES)
def test_tables_may_have_any_strides(
    strides: dict, table_dtype: torch.dtype | None, dtype: torch.dtype
):
    x = normal(2, 5, 3, 32, dtype=dtype)
    cos, sin = angle_tables(7, 16, dtype=table_dtype or dtype)
    strided_cos, _ = strided(cos, **strides)
    other_strides_sin, _ = strided(sin, steps=(2, 3))
    for positions in (None, torch.tensor([6, 0, 3, 3, 5])):
        expected = rope_ext.rotate(x, cos, sin, positions)
        actual = rope_ext.rotate(x, strided_cos, other_strides_sin, positions)
        assert_same_bits(actual, expected)


def test_tables_may_be_expanded():
    x = normal(3, 5, 2, 16)
    cos, sin = angle_tables(1, 8)
    alike = cos.expand(5, 8), sin.expand(5, 8)
    assert_both_spellings_rotate(x, *alike)
    assert_both_spellings_rotate(x, *(table.expand(3, 5, 8) for table in alike))
    assert_both_spellings_rotate(x, *(table[:, None].expand(3, 5, 2, 8) for table in alike))
    one_pair = tuple(table[:, :1].expand(5, 8) for table in alike)
    assert_both_spellings_rotate(x, *one_pair)


def test_halves_of_one_table_serve_as_cos_and_sin():
    x = normal(5, 2, 16)
    both = torch.cat(angle_tables(5, 8), dim=-1)
    assert_both_spellings_rotate(x, both[:, :8], both[:, 8:])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=name)
def test_positions_may_have_any_strides(dtype: torch.dtype):
    x = normal(3, 5, 2, 16)
    cos, sin = angle_tables(ROWS, 8)
    positions = token_positions(3, 5, dtype=dtype)
    expected = rope_ext.rotate(x, cos, sin, positions)
    assert_rotated(expected, x, cos, sin, positions)
    for strides in (
        {"order": (1, 0)},
        {"steps": (1, 2), "padding": (0, 1)},
        {"steps": (2, 1), "padding": (1, 3)},
    ):
        view, _ = strided(positions, **strides, fill=-1)
        assert_same_bits(rope_ext.rotate(x, cos, sin, view), expected)


def test_positions_may_be_expanded():
    x = normal(3, 5, 2, 16)
    cos, sin = angle_tables(ROWS, 8)
    assert_both_spellings_rotate(x, cos, sin, token_positions(5).expand(3, 5))
    assert_both_spellings_rotate(x, cos, sin, token_positions(3, 1).expand(3, 5))
    assert_both_spellings_rotate(x, cos, sin, torch.tensor(4).expand(5))


def test_positions_broadcast_to_the_leading_dimensions():
    x = normal(2, 3, 5, 2, 16)
    cos, sin = angle_tables(ROWS, 8)
    for shape in [(5,), (1, 5), (3, 5), (1, 3, 5), (2, 1, 5), (1, 1, 5), (2, 3, 5)]:
        assert_both_spellings_rotate(x, cos, sin, token_positions(*shape))


def test_tables_broadcast_to_the_leading_dimensions():
    x = normal(2, 3, 5, 4, 16)
    for leading in [(1,), (3,), (1, 1), (1, 3), (2, 1), (2, 3)]:
        assert_both_spellings_rotate(x, *angle_tables(*leading, 5, 8))
    for leading in [(1, 1), (1, 3), (2, 1), (2, 3)]:
        assert_both_spellings_rotate(x, *angle_tables(*leading, 5, 1, 8))
        assert_both_spellings_rotate(x, *angle_tables(*leading, 5, 4, 8))


def test_no_positions_means_the_tokens_own_index():
    x = normal(2, 5, 2, 16)
    cos, sin = angle_tables(ROWS, 8)
    own_index = rope_ext.rotate(x, cos, sin, torch.arange(5))
    assert_same_bits(rope_ext.rotate(x, cos, sin), own_index)
    assert_same_bits(rope_ext.rotate(x, cos[:5], sin[:5]), own_index)


def test_the_first_and_the_last_row_can_be_taken():
    x = normal(2, 2, 16)
    assert_both_spellings_rotate(x, *angle_tables(ROWS, 8), torch.tensor([0, ROWS - 1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@pytest.mark.parametrize("num_heads", [0, 1, 3, 4])
def test_only_the_first_heads_of_the_query_rotate(
    num_heads: int, layout: Layout, interleaved: bool, dtype: torch.dtype
):
    x = normal(*layout.shape(5, 4, 16), dtype=dtype)
    options = {**layout.options(16), "num_heads": num_heads, "interleaved": interleaved}
    assert_both_spellings_rotate(x, *angle_tables(5, 8), **options)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_tables_per_head_count_the_rotated_heads(layout: Layout):
    x = normal(*layout.shape(5, 4, 16))
    tables = angle_tables(*layout.table_with_heads((1,) * len(layout.leading), 5, 3, 8))
    assert_both_spellings_rotate(x, *tables, **layout.options(16), num_heads=3)


@pytest.mark.parametrize("seq_dim", [-3, -2], ids=["tokens first", "heads first"])
def test_six_leading_dimensions_that_no_stride_joins_rotate(seq_dim: int):
    shape = (2,) * 6 + ((3, 2, 8) if seq_dim == -3 else (2, 3, 8))
    x = normal(*shape)
    view, _ = strided(x, steps=[2] * 8 + [1])
    cos, sin = angle_tables(ROWS, 4)
    positions = token_positions(*[2, 1] * 3, 3)
    rope_ext.apply_(view, None, cos, sin, positions, seq_dim=seq_dim)
    assert_rotated(view, x, cos, sin, positions, seq_dim=seq_dim)


def test_any_number_of_leading_dimensions_that_strides_join_rotates():
    x = normal(*[2] * 10, 3, 2, 8)
    assert_both_spellings_rotate(x, *angle_tables(3, 4))
    assert_both_spellings_rotate(x, *angle_tables(2, 3, 4))


def test_num_heads_leaves_the_number_of_key_heads_alone():
    query, key = normal(2, 5, 4, 16, seed=3), normal(2, 5, 3, 16, seed=4)
    cos, sin = angle_tables(5, 8)
    new_query, new_key = query.clone(), key.clone()
    rope_ext.apply_(new_query, new_key, cos, sin, num_heads=2)
    assert_rotated(new_query, query, cos, sin, num_heads=2)
    assert_rotated(new_key, key, cos, sin)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
def test_packed_qkv_rotates_q_and_k_in_one_call_and_leaves_v_alone(
    interleaved: bool, dtype: torch.dtype
):
    q_heads, k_heads, v_heads, head_dim = 4, 2, 2, 16
    packed = normal(2, 5, (q_heads + k_heads + v_heads) * head_dim, dtype=dtype)
    packed[..., (q_heads + k_heads) * head_dim :] = math.nan
    cos, sin = angle_tables(5, head_dim // 2)
    before = packed.clone()
    rope_ext.apply_(
        packed,
        None,
        cos,
        sin,
        head_dim=head_dim,
        num_heads=q_heads + k_heads,
        interleaved=interleaved,
    )

    q, k, v = before.split([n * head_dim for n in (q_heads, k_heads, v_heads)], dim=-1)
    new_q, new_k, new_v = packed.split([n * head_dim for n in (q_heads, k_heads, v_heads)], dim=-1)
    options = {"head_dim": head_dim, "interleaved": interleaved}
    assert_rotated(new_q, q, cos, sin, **options)
    assert_rotated(new_k, k, cos, sin, **options)
    assert torch.equal(bits(new_v), bits(v))


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -0.0], ids=str)
@pytest.mark.parametrize(("start", "pairs"), [(0, 5), (22, 5), (9, 8), (3, 1)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_elements_outside_the_rotated_span_are_never_read_or_written(
    layout: Layout,
    start: int,
    pairs: int,
    poison: float,
    interleaved: bool,
    dtype: torch.dtype,
):
    tokens, heads, head_dim = 3, 3, 32
    x = normal(*layout.shape(tokens, heads, head_dim), dtype=dtype)
    heads_view = x.unflatten(-1, (heads, head_dim)) if layout.flat else x
    outside = torch.ones(head_dim, dtype=torch.bool)
    outside[start : start + 2 * pairs] = False
    heads_view[..., outside] = poison
    cos, sin = angle_tables(tokens, pairs)
    options = {**layout.options(head_dim), "start": start, "interleaved": interleaved}

    functional = rope_ext.rotate(x, cos, sin, **options)
    in_place = x.clone()
    rope_ext.apply_(in_place, None, cos, sin, **options)
    for result in (functional, in_place):
        if layout.flat:
            result = result.unflatten(-1, (heads, head_dim))
        assert torch.equal(bits(result[..., outside]), bits(heads_view[..., outside]))
        assert result[..., ~outside].isfinite().all()
    assert_rotated(functional, x, cos, sin, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
def test_infinities_and_nan_follow_the_arithmetic(interleaved: bool, dtype: torch.dtype):
    x = normal(2, 4, 64, dtype=dtype)
    x[0, :, 1::7] = math.inf
    x[1, :, 2::9] = -math.inf
    x[:, 3, 5::11] = math.nan
    assert_both_spellings_rotate(x, *angle_tables(2, 32), interleaved=interleaved)


@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
def test_float16_overflows_to_infinity(interleaved: bool):
    x = torch.full((1, 2, 64), torch.finfo(torch.float16).max, dtype=torch.float16)
    eighth_of_a_turn = torch.full((1, 32), math.sqrt(0.5))
    y = rope_ext.rotate(x, eighth_of_a_turn, eighth_of_a_turn, interleaved=interleaved)
    assert y.isinf().sum() == x.numel() // 2
    assert_both_spellings_rotate(x, eighth_of_a_turn, eighth_of_a_turn, interleaved=interleaved)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
def test_subnormal_numbers_are_not_flushed(interleaved: bool, dtype: torch.dtype):
    largest_subnormal = torch.finfo(dtype).smallest_normal * (1 - torch.finfo(dtype).eps)
    x = normal(2, 3, 64, dtype=torch.float64) * largest_subnormal / 4
    x = x.to(dtype)
    cos, sin = angle_tables(2, 32, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    y = rope_ext.rotate(x, cos, sin, interleaved=interleaved)
    assert ((y != 0) & (y.abs() < torch.finfo(dtype).smallest_normal)).any()
    assert_both_spellings_rotate(x, cos, sin, interleaved=interleaved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_the_result_is_rounded_to_even(dtype: torch.dtype):
    """Halfway cases: 1 + eps / 2 goes down to 1, and 1 + 3 eps / 2 goes up to 1 + 2 eps."""
    eps = torch.finfo(dtype).eps
    x = torch.ones(2, 1, 64, dtype=dtype)
    x[..., 32:] = 0
    cos = torch.tensor([1 + eps / 2, 1 + 3 * eps / 2])[:, None].expand(2, 32)
    y = rope_ext.rotate(x, cos, torch.zeros_like(cos))
    assert (y[0, :, :32] == 1).all()
    assert (y[1, :, :32] == 1 + 2 * eps).all()


def test_the_product_with_sin_is_rounded_and_the_other_is_fused():
    """The order of operations is part of the contract: it decides the last bit.

    With u = 2^-12, x = y = 1 + u and cos = sin = 1 + u the exact products are 1 + 2u + u^2, where
    u^2 = 2^-24 is half an ulp, rounded away from y * sin and kept inside the fused x * cos.
    """
    u = 2.0**-12
    x = torch.full((1, 1, 2), 1 + u)
    table = torch.full((1, 1), 1 + u)
    first, second = rope_ext.rotate(x, table, table).flatten().tolist()
    assert first == u * u
    rounded_product = 1 + 2 * u
    assert second == torch.tensor(rounded_product + (1 + u) ** 2, dtype=torch.float64).float()
    inverse = rope_ext.rotate(x, table, table, inverse=True).flatten().tolist()
    assert inverse == [second, first]


def test_strides_beyond_31_bits_address_the_right_elements(device: torch.device):
    far = 2**31 + 8
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 5e9:
        pytest.skip(f"{device} has no 5 GB left")
    base = torch.empty(far + 64, dtype=torch.float16)
    view = base.as_strided((2, 2, 16), (far, 16, 1))
    x = normal(2, 2, 16, dtype=torch.float16)
    for row, there in zip(x, view, strict=True):
        there.copy_(row)
    cos, sin = angle_tables(2, 8)
    rope_ext.apply_(view, None, cos, sin)
    for token, (row, there) in enumerate(zip(x, view, strict=True)):
        tables = cos[token : token + 1], sin[token : token + 1]
        assert_rotated(there[None], row[None], *tables)


@pytest.mark.parametrize("key_heads", [None, 0, 2])
@pytest.mark.parametrize(
    "shape", [(0, 5, 2, 16), (2, 0, 2, 16), (2, 5, 0, 16), (2, 5, 2, 0), (0, 0, 0, 0)], ids=str
)
def test_empty_tensors_are_accepted_and_nothing_happens(
    shape: tuple[int, ...], key_heads: int | None
):
    batch, tokens, _, head_dim = shape
    query = torch.empty(shape)
    key = None if key_heads is None else torch.ones(batch, tokens, key_heads, head_dim)
    cos, sin = angle_tables(tokens, head_dim // 2)
    positions = torch.arange(tokens)
    rope_ext.apply_(query, key, cos, sin, positions)
    assert rope_ext.rotate(query, cos, sin, positions).shape == shape
    if key is not None:
        expected = torch.ones_like(key)
        assert_rotated(key, expected, cos, sin, positions)


def test_the_same_input_gives_the_same_bits_again():
    x = normal(4, 300, 8, 64, dtype=torch.bfloat16)
    cos, sin = angle_tables(300, 32)
    first = rope_ext.rotate(x, cos, sin)
    for _ in range(5):
        assert_same_bits(rope_ext.rotate(x, cos, sin), first)


def test_autocast_casts_nothing(device: torch.device):
    x = normal(2, 5, 3, 16)
    cos, sin = angle_tables(5, 8)
    expected = rope_ext.rotate(x, cos, sin)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert_same_bits(rope_ext.rotate(x, cos, sin), expected)
        in_place = x.clone()
        rope_ext.apply_(in_place, None, cos, sin)
    assert_same_bits(in_place, expected)


def test_a_view_with_its_sign_pending_rotates_by_value():
    imaginary = torch.complex(normal(5, 2, 16), normal(5, 2, 16, seed=5)).conj().imag
    assert imaginary.is_neg()
    cos, sin = angle_tables(5, 8)
    assert_rotated(rope_ext.rotate(imaginary, cos, sin), imaginary.clone(), cos, sin)

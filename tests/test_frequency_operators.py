"""Rotation by positions and frequencies: what the table operators promise, without a table.

Angles themselves are judged in test_angles.py. Here a rotation must have the bits of the table
operator, fed with the tables that ``rope_ext.cos_sin`` makes in the compute type.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from angles import (
    FREQUENCY_FORMS,
    FREQUENCY_FORMS_BY_LAYOUT,
    Form,
    floating_positions,
    integer_positions,
    positions_of,
    some_frequencies,
    tables_of,
)
from inputs import CAPABILITIES, DTYPES, LAYOUTS, Layout, name, normal, strided
from recorder import Recorder, allocations
from test_errors import (
    OPTIONS,
    REFUSALS,
    TWICE,
    Refusal,
    assert_nothing_changed,
    flat,
    snapshot,
)
from tolerance import COMPUTE, assert_rotated, assert_same_bits, bits
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rope_ext
from rope_ext import _C
from rope_ext.frequencies import turns

APPLY = torch.ops.rope.apply_frequencies
ROTATE = torch.ops.rope.rotate_frequencies
AVAILABLE = _C.cpu_capabilities()
SCALE = 1.2079441541679836
BSHD, BHSD, THD = LAYOUTS[:3]
FLAT = next(layout for layout in LAYOUTS if layout.flat)
TWO_LEADING = next(layout for layout in LAYOUTS if len(layout.leading) == 2)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)


def assert_rotated_by_frequencies(
    x: Tensor, layout: Layout, positions: Tensor | None, frequencies: Tensor, **options: object
) -> Tensor:
    """Check both spellings against the reference and the table operator, and return the result."""
    scale = options.pop("scale", 1.0)
    tokens = x.shape[-2] if layout.flat else x.shape[layout.seq_dim]
    of_tokens = positions_of(tokens, frequencies, positions)
    tables = tables_of(layout, of_tokens, frequencies, scale, COMPUTE[x.dtype])
    functional = rope_ext.rotate_frequencies(x, positions, frequencies, scale, **options)
    assert_rotated(functional, x, *tables, **options)
    assert_same_bits(functional, rope_ext.rotate(x, *tables, **options))
    in_place = x.clone()
    rope_ext.apply_frequencies_(in_place, None, positions, frequencies, scale, **options)
    assert_same_bits(in_place, functional)
    return functional


# What is promised beyond the numbers


def a_call(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A query, a key, positions and frequencies: 2 sequences of 5 tokens, 4 and 2 heads of 16."""
    query, key = normal(2, 5, 4, 16, dtype=dtype, seed=3), normal(2, 5, 2, 16, dtype=dtype, seed=4)
    return query, key, integer_positions(5), some_frequencies(8)


def test_the_schemas_are_the_contracts():
    flags = (
        "int seq_dim=-3, int? head_dim=None, int? num_heads=None, int start=0, "
        "bool interleaved=False, bool inverse=False"
    )
    assert str(APPLY.default._schema) == (
        "rope::apply_frequencies(Tensor(a!) query, Tensor(b!)? key, Tensor? positions, "
        f"Tensor frequencies, float scale=1., {flags}) -> ()"
    )
    assert str(ROTATE.default._schema) == (
        "rope::rotate_frequencies(Tensor x, Tensor? positions, Tensor frequencies, "
        f"float scale=1., {flags}) -> Tensor"
    )
    assert str(torch.ops.rope.cos_sin.default._schema) == (
        "rope::cos_sin(Tensor positions, Tensor frequencies, float scale=1., "
        "ScalarType? dtype=None) -> (Tensor cos, Tensor sin)"
    )


def test_there_are_no_out_overloads():
    for operator in (APPLY, ROTATE, torch.ops.rope.cos_sin):
        assert operator.overloads() == ["default"]


@dtypes
def test_the_operator_rotates_in_place_and_returns_nothing(dtype: torch.dtype):
    query, key, positions, frequencies = a_call(dtype)
    new_query, new_key = query.clone(), key.clone()
    addresses = new_query.data_ptr(), new_key.data_ptr()
    assert APPLY(new_query, new_key, positions, frequencies) is None
    assert (new_query.data_ptr(), new_key.data_ptr()) == addresses
    tables = rope_ext.cos_sin(positions, frequencies, dtype=COMPUTE[dtype])
    assert_rotated(new_query, query, *tables)
    assert_rotated(new_key, key, *tables)


def test_apply_returns_the_tensors_that_it_was_given():
    query, key, *angles = a_call()
    result = rope_ext.apply_frequencies_(query, key, *angles)
    assert isinstance(result, tuple)
    assert result[0] is query
    assert result[1] is key
    assert rope_ext.apply_frequencies_(query, None, *angles) is query


def test_rotate_returns_a_new_tensor_and_x_keeps_its_bits():
    x, _, *angles = a_call()
    before = x.clone()
    y = rope_ext.rotate_frequencies(x, *angles)
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert torch.equal(bits(x), bits(before))
    assert x._version == 0


def test_keywords_reach_the_operators_in_the_order_of_the_schema():
    packed = normal(2, 5, 6 * 16)
    angles = integer_positions(5, 2), some_frequencies(2, 4, 3), SCALE
    options = {"head_dim": 16, "num_heads": 4, "start": 5, "interleaved": True, "inverse": True}
    in_order = -3, 16, 4, 5, True, True
    expected = assert_rotated_by_frequencies(packed, FLAT, *angles[:2], scale=SCALE, **options)
    by_position, by_keyword, by_wrapper = packed.clone(), packed.clone(), packed.clone()
    APPLY(by_position, None, *angles, *in_order)
    APPLY(by_keyword, None, *angles[:2], scale=SCALE, seq_dim=-3, **options)
    rope_ext.apply_frequencies_(by_wrapper, None, *angles, **options)
    for actual in (
        by_position,
        by_keyword,
        by_wrapper,
        ROTATE(packed, *angles, *in_order),
        ROTATE(packed, *angles[:2], scale=SCALE, seq_dim=-3, **options),
        rope_ext.rotate_frequencies(packed, *angles, **options),
    ):
        assert_same_bits(actual, expected)


def test_options_of_the_wrappers_take_keywords_only():
    query, key, *angles = a_call()
    with pytest.raises(TypeError):
        rope_ext.apply_frequencies_(query, key, *angles, 1.0, -3)
    with pytest.raises(TypeError):
        rope_ext.rotate_frequencies(query, *angles, 1.0, -3)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_versions_are_bumped_in_every_mode(mode):
    query, key, *angles = a_call()
    with mode():
        rope_ext.apply_frequencies_(query, key, *angles)
    assert (query._version, key._version) == (1, 1)
    with mode():
        rope_ext.apply_frequencies_(query, None, *angles)
    assert (query._version, key._version) == (2, 1)


def test_positions_and_frequencies_are_left_alone():
    query, key, *angles = a_call()
    kept = [tensor.clone() for tensor in angles]
    rope_ext.apply_frequencies_(query, key, *angles)
    rope_ext.rotate_frequencies(query, *angles)
    rope_ext.cos_sin(*angles)
    assert all(map(torch.equal, angles, kept))
    assert [tensor._version for tensor in angles] == [0, 0]


def test_query_and_key_may_be_slices_of_one_tensor():
    packed = normal(2, 5, 8, 16)
    before = packed.clone()
    _, _, *angles = a_call()
    rope_ext.apply_frequencies_(packed[:, :, :4], packed[:, :, 4:6], *angles)
    assert_rotated(packed, before, *rope_ext.cos_sin(*angles), num_heads=6)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_one_operator_runs_and_no_copy_is_made(requires_grad: bool):
    query, key, *_ = a_call(torch.bfloat16)
    query = query.requires_grad_(requires_grad).clone().transpose(1, 2)
    key, _ = strided(key.transpose(1, 2), steps=(1, 1, 1, 2))
    angles = floating_positions(1, 5, 2).expand(2, 5, 2), some_frequencies(2, 1, 8)
    with Recorder() as recorder:
        rope_ext.apply_frequencies_(query, key, *angles, seq_dim=-2)
        rope_ext.rotate_frequencies(query, *angles, seq_dim=-2)
    assert recorder.names == ["rope.apply_frequencies.default", "rope.rotate_frequencies.default"]


def test_autocast_casts_nothing():
    x, _, *angles = a_call()
    expected = rope_ext.rotate_frequencies(x, *angles)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(rope_ext.rotate_frequencies(x, *angles), expected)
        rope_ext.apply_frequencies_(x, None, *angles)
        assert rope_ext.cos_sin(*angles)[0].dtype == torch.float32
    assert_same_bits(x, expected)


# The matrix of the contract


@pytest.mark.parametrize(("layout", "form"), FREQUENCY_FORMS_BY_LAYOUT)
def test_query_and_key_rotate_in_every_form(layout: Layout, form: Form):
    tokens, heads, head_dim = 5, 3, 32
    angles = form(layout, tokens, heads, head_dim // 2)
    key_heads = heads if angles[1].dim() == 3 else 2
    for dtype, interleaved in itertools.product(DTYPES, (False, True)):
        query = normal(*layout.shape(tokens, heads, head_dim), dtype=dtype, seed=3)
        key = normal(*layout.shape(tokens, key_heads, head_dim), dtype=dtype, seed=4)
        options = {**layout.options(head_dim), "interleaved": interleaved}
        expected = [
            assert_rotated_by_frequencies(x, layout, *angles, scale=SCALE, **options)
            for x in (query, key)
        ]
        rope_ext.apply_frequencies_(query, key, *angles, SCALE, **options)
        assert_same_bits(query, expected[0])
        assert_same_bits(key, expected[1])


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize(
    ("start", "pairs"),
    [(0, 16), (24, 4), (9, 4), (7, 5), (38, 1)],
    ids=["whole", "trailing", "middle", "odd", "last pair"],
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_pairs_anywhere_in_a_head_rotate(layout: Layout, start: int, pairs: int, inverse: bool):
    head_dim = max(32, start + 2 * pairs)
    angles = integer_positions(3, 2), some_frequencies(2, 2, pairs)
    for dtype, interleaved in itertools.product(DTYPES, (False, True)):
        x = normal(*layout.shape(3, 2, head_dim), dtype=dtype)
        options = {"start": start, "interleaved": interleaved, "inverse": inverse}
        assert_rotated_by_frequencies(x, layout, *angles, **layout.options(head_dim), **options)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
@pytest.mark.parametrize("num_heads", [1, 3])
def test_only_the_first_heads_of_the_query_rotate(num_heads: int, layout: Layout):
    for dtype, interleaved in itertools.product(DTYPES, (False, True)):
        x = normal(*layout.shape(5, 4, 16), dtype=dtype)
        options = {**layout.options(16), "num_heads": num_heads, "interleaved": interleaved}
        for frequencies in (some_frequencies(8), some_frequencies(1, num_heads, 8)):
            assert_rotated_by_frequencies(x, layout, None, frequencies, **options)


@pytest.mark.parametrize("matrix", [(2, 0), (2, 1, 0), (2, 4, 0), (2, 0, 8)], ids=str)
def test_a_rotation_of_no_pair_or_no_head_changes_nothing(matrix: tuple[int, ...]):
    x, frequencies = normal(5, 4, 16), some_frequencies(*matrix)
    options = {"num_heads": 0, "scale": SCALE} if matrix == (2, 0, 8) else {"scale": SCALE}
    for positions in (integer_positions(5, 2), floating_positions(5, 2), None):
        y = assert_rotated_by_frequencies(x, THD, positions, frequencies, **options)
        assert torch.equal(y, x)


def test_a_head_axis_of_one_serves_query_and_key_of_any_heads():
    query, key, positions, frequencies = a_call()
    new_query, new_key = query.clone(), key.clone()
    rope_ext.apply_frequencies_(new_query, new_key, positions[:, None], frequencies[None, None])
    assert_same_bits(new_query, rope_ext.rotate_frequencies(query, positions, frequencies))
    assert_same_bits(new_key, rope_ext.rotate_frequencies(key, positions, frequencies))


def test_scale_leaves_what_is_not_rotated_alone():
    x = normal(2, 5, 4, 16)
    y = rope_ext.rotate_frequencies(x, None, some_frequencies(4), 3.0, start=2, num_heads=3)
    kept = torch.ones(4, 16, dtype=torch.bool)
    kept[:3, 2:10] = False
    assert torch.equal(bits(y[..., kept]), bits(x[..., kept]))


@dtypes
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -0.0], ids=str)
def test_elements_outside_the_rotated_span_are_never_read_or_written(
    poison: float, interleaved: bool, dtype: torch.dtype
):
    x = normal(2, 3, 3, 32, dtype=dtype)
    outside = torch.ones(32, dtype=torch.bool)
    outside[9 : 9 + 2 * 8] = False
    x[..., outside] = poison
    angles = integer_positions(3), some_frequencies(8)
    y = assert_rotated_by_frequencies(x, BSHD, *angles, start=9, interleaved=interleaved)
    assert torch.equal(bits(y[..., outside]), bits(x[..., outside]))
    assert y[..., ~outside].isfinite().all()


STRIDES = {
    "transposed heads and tokens": {"order": (0, 2, 1, 3)},
    "elements outermost": {"order": (3, 0, 1, 2)},
    "elements three apart": {"steps": (1, 1, 1, 3), "padding": (0, 0, 0, 1)},
    "unaligned rows": {"padding": (0, 0, 0, 1)},
    "slices of everything": {"steps": (2, 3, 2, 1), "padding": (1, 1, 1, 5)},
}


@pytest.mark.parametrize("per_head", [False, True], ids=["all heads alike", "per head"])
@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
def test_any_strides_give_the_bits_of_a_contiguous_tensor_and_spare_the_rest(
    strides: dict, per_head: bool
):
    angles = integer_positions(2, 5, 2), some_frequencies(2, 3 if per_head else 1, 16)
    for dtype, interleaved in itertools.product(DTYPES, (False, True)):
        x = normal(2, 5, 3, 40, dtype=dtype)
        options = {"start": 3, "interleaved": interleaved}
        expected = rope_ext.rotate_frequencies(x, *angles, **options)
        view, base = strided(x, **strides)
        before = base.clone()
        assert_same_bits(rope_ext.rotate_frequencies(view, *angles, **options), expected)
        assert torch.equal(bits(base), bits(before))
        rope_ext.apply_frequencies_(view, None, *angles, **options)
        assert_same_bits(view, expected)
        view.fill_(math.nan)
        assert base.isnan().all()


both_kinds = pytest.mark.parametrize("places", [integer_positions, floating_positions], ids=name)


@both_kinds
def test_positions_and_frequencies_may_have_any_strides(places: Callable[..., Tensor]):
    x, positions, frequencies = normal(2, 5, 4, 30), places(2, 5, 3), some_frequencies(3, 4, 15)
    expected = assert_rotated_by_frequencies(x, BSHD, positions, frequencies)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        view, _ = strided(positions, order=order, steps=(2, 1, 3), padding=(1, 2, 0), fill=-1)
        matrix, _ = strided(frequencies, order=order, steps=(1, 3, 2), padding=(0, 1, 4))
        assert_same_bits(rope_ext.rotate_frequencies(x, view, matrix), expected)


def test_positions_broadcast_to_the_leading_dimensions():
    x, layout = normal(2, 3, 5, 4, 16), TWO_LEADING
    for leading in [(), (1,), (3,), (1, 3), (2, 1), (1, 1), (2, 3)]:
        positions = integer_positions(*leading, 5, 2)
        assert_rotated_by_frequencies(x, layout, positions[..., 0], some_frequencies(8))
        assert_rotated_by_frequencies(x, layout, positions, some_frequencies(2, 8))
        assert_rotated_by_frequencies(x, layout, positions, some_frequencies(2, 4, 8))


def test_six_leading_dimensions_that_no_stride_joins_rotate():
    x = normal(*[2] * 6, 3, 2, 8)
    view, _ = strided(x, steps=[2] * 8 + [1])
    positions = integer_positions(*[2, 1] * 3, 3, 2)
    expected = rope_ext.rotate_frequencies(
        x, positions.expand(*[2] * 6, 3, 2).contiguous(), some_frequencies(2, 2, 4)
    )
    rope_ext.apply_frequencies_(view, None, positions, some_frequencies(2, 2, 4))
    assert_same_bits(view, expected)


@pytest.mark.parametrize("key_heads", [None, 0, 2])
@pytest.mark.parametrize("shape", [(0, 5, 2, 16), (2, 0, 2, 16), (2, 5, 0, 16)], ids=str)
def test_empty_tensors_are_accepted_and_nothing_happens(
    shape: tuple[int, ...], key_heads: int | None
):
    batch, tokens, _, head_dim = shape
    query = torch.empty(shape)
    frequencies = some_frequencies(2, head_dim // 2)
    for positions in (None, integer_positions(tokens, 2), floating_positions(tokens, 2)):
        key = None if key_heads is None else torch.ones(batch, tokens, key_heads, head_dim)
        rope_ext.apply_frequencies_(query, key, positions, frequencies)
        assert rope_ext.rotate_frequencies(query, positions, frequencies).shape == shape
        if key is not None:
            of_tokens = positions_of(tokens, frequencies, positions)
            tables = rope_ext.cos_sin(of_tokens, frequencies)
            assert_rotated(key, torch.ones_like(key), *tables)


# The same bits

vector_capabilities = pytest.mark.parametrize(
    "capability",
    [
        pytest.param(
            capability,
            marks=pytest.mark.skipif(
                capability not in AVAILABLE, reason=f"this CPU or build has no {capability}"
            ),
        )
        for capability in CAPABILITIES[1:]
    ],
)


def assert_all_bits_as_scalar(capability: str, x: Tensor, *angles: object, **options) -> None:
    _C.set_cpu_capability("scalar")
    expected = rope_ext.rotate_frequencies(x, *angles, **options)
    _C.set_cpu_capability(capability)
    assert_same_bits(rope_ext.rotate_frequencies(x, *angles, **options), expected)
    rope_ext.apply_frequencies_(x, None, *angles, **options)
    assert_same_bits(x, expected)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pytest.mark.parametrize("pairs", [*range(1, 71), 128, 511, 512, 513, 600])
def test_every_number_of_pairs_gives_the_bits_of_scalar(pairs: int, capability: str):
    angles = integer_positions(2, 2), some_frequencies(2, pairs)
    for dtype in DTYPES:
        assert_all_bits_as_scalar(capability, normal(2, 3, 2 * pairs, dtype=dtype), *angles, SCALE)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pytest.mark.parametrize("form", FREQUENCY_FORMS, ids=name)
@pytest.mark.parametrize("layout", [BHSD, TWO_LEADING, FLAT], ids=name)
def test_every_form_gives_the_bits_of_scalar(layout: Layout, form: Form, capability: str):
    positions, frequencies = form(layout, 7, 8, 37)
    for dtype, interleaved in itertools.product(DTYPES, (False, True)):
        x = normal(*layout.shape(7, 9, 80), dtype=dtype)
        options = {**layout.options(80), "start": 3, "num_heads": 8, "interleaved": interleaved}
        assert_all_bits_as_scalar(capability, x, positions, frequencies, **options)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
def test_angles_of_every_size_give_the_bits_of_scalar(capability: str):
    """Every quarter, next to where quarters meet, and at 2^63."""
    edges = torch.arange(8)[:, None] * 2**61 + torch.tensor([0, 1, -1, 2**31, -(2**32), 2**32])
    generator = torch.Generator().manual_seed(0)
    spread = torch.randint(-(2**63), 2**63 - 1, (4096,), generator=generator)
    frequencies = torch.cat((edges.flatten(), spread))
    positions = torch.tensor([1, -1, 0, 2**31 - 1, -(2**63), 2**63 - 1])
    _C.set_cpu_capability("scalar")
    expected = rope_ext.cos_sin(positions, frequencies)
    _C.set_cpu_capability(capability)
    for actual, table in zip(rope_ext.cos_sin(positions, frequencies), expected, strict=True):
        assert_same_bits(actual, table)


SHAPES = {
    "prefill": (1, 300, 8, 128),
    "batches": (33, 7, 8, 128),
    "one token, many heads": (1, 1, 4096, 128),
    "one long head": (1, 1, 1, 2**17),
    "decode": (1, 1, 8, 128),
}


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("layout", [BSHD, BHSD], ids=name)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", ["all heads alike", "per head", "floating"])
def test_the_number_of_threads_does_not_change_a_bit(
    form: str, shape: tuple[int, ...], layout: Layout
):
    batch, tokens, heads, head_dim = shape
    x = normal(batch, *layout.shape(tokens, heads, head_dim)[1:], dtype=torch.bfloat16)
    matrix = some_frequencies(2, heads if form == "per head" else 1, head_dim // 2)
    places = floating_positions if form == "floating" else integer_positions
    positions = places(batch, tokens, 2)

    def rotated(threads: int) -> Tensor:
        torch.set_num_threads(threads)
        return rope_ext.rotate_frequencies(x, positions, matrix, seq_dim=layout.seq_dim)

    expected = rotated(1)
    tables = tables_of(layout, positions, matrix, 1.0, torch.float32)
    assert_same_bits(rope_ext.rotate(x, *tables, seq_dim=layout.seq_dim), expected)
    for threads in (2, 5):
        assert_same_bits(rotated(threads), expected)


@pytest.mark.parametrize("axes", [1, 3, 5, 64])
@pytest.mark.parametrize("pairs", [31, 32, 33, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_stretches_of_tokens_and_pairs_do_not_change_a_bit(
    dtype: torch.dtype, pairs: int, axes: int
):
    """More pairs, axes and tokens than one row of turns or one stretch of angles has room for."""
    x = normal(1, 700, 1, 2 * pairs, dtype=dtype)
    frequencies = some_frequencies(axes, pairs)
    for positions in (integer_positions(700, axes), floating_positions(700, axes)):
        whole = rope_ext.rotate_frequencies(x, positions, frequencies)
        for token in (0, 1, 350, 699):
            alone = slice(token, token + 1)
            for pair in (0, pairs - 1):
                one = x[:, alone, :, [pair, pair + pairs]]
                matrix = frequencies[:, pair : pair + 1]
                assert_same_bits(
                    rope_ext.rotate_frequencies(one, positions[alone], matrix),
                    whole[:, alone, :, [pair, pair + pairs]],
                )


@dtypes
def test_a_layout_does_not_change_a_bit(dtype: torch.dtype):
    x = normal(2, 5, 6, 96, dtype=dtype)
    angles = integer_positions(2, 5, 2), some_frequencies(2, 6, 48)
    expected = rope_ext.rotate_frequencies(x, *angles)
    heads_first = rope_ext.rotate_frequencies(x.transpose(1, 2), *angles, seq_dim=-2)
    assert_same_bits(heads_first.transpose(1, 2), expected)
    flat_x = rope_ext.rotate_frequencies(x.flatten(-2), *angles, head_dim=96)
    assert_same_bits(flat_x.unflatten(-1, (6, 96)), expected)
    rows = [
        rope_ext.rotate_frequencies(row, of_row, angles[1])
        for row, of_row in zip(x, angles[0], strict=True)
    ]
    assert_same_bits(torch.stack(rows), expected)


# Refusals

ARGUMENTS = ("query", "key", "positions", "frequencies", "scale")


def accepted() -> dict[str, object]:
    """2 sequences of 5 tokens, 4 heads and 2 key heads of 16, frequencies of 8 pairs."""
    query, key, positions, frequencies = a_call()
    return {
        "query": query,
        "key": key,
        "positions": positions,
        "frequencies": frequencies,
        "scale": 1.0,
        "seq_dim": -3,
        "head_dim": None,
        "num_heads": None,
        "start": 0,
        "interleaved": False,
        "inverse": False,
    }


def frequencies_of(*shape: int, positions: Tensor | None = None) -> dict[str, Tensor | None]:
    return {"frequencies": some_frequencies(*shape), "positions": positions}


def frequencies_inside(role: str) -> dict[str, object]:
    call = accepted()
    return {role: call[role], "frequencies": call[role][1, 3, 1, :8]}


def positions_inside(role: str, dtype: torch.dtype) -> dict[str, object]:
    memory = torch.ones_like(accepted()[role])
    return {role: memory, "positions": memory.view(dtype)[0, :, 0, 3]}


OWN_REFUSALS = [
    Refusal(
        f"{dtype} frequencies",
        TypeError,
        "frequencies",
        name(dtype),
        lambda dtype=dtype: {"frequencies": torch.ones(8).to(dtype)},
    )
    for dtype in (torch.float16, torch.bfloat16, torch.int32, torch.bool, torch.complex64)
]
OWN_REFUSALS += [
    Refusal(
        f"{dtype} positions",
        TypeError,
        "positions",
        name(dtype),
        lambda dtype=dtype: {"positions": torch.ones(5).to(dtype)},
    )
    for dtype in (torch.float16, torch.bfloat16, torch.int16, torch.bool, torch.complex64)
]
OWN_REFUSALS += [
    Refusal(
        f"turns at {dtype} positions",
        TypeError,
        "positions",
        name(dtype),
        lambda dtype=dtype: {
            "positions": torch.ones(5, dtype=dtype),
            "frequencies": turns(some_frequencies(8)),
        },
    )
    for dtype in (torch.float32, torch.float64)
]
OWN_REFUSALS += [
    Refusal(
        "frequencies without dimensions",
        ValueError,
        "frequencies",
        "0",
        lambda: {"frequencies": torch.tensor(1.0)},
    ),
    Refusal(
        "frequencies of four dimensions",
        ValueError,
        "frequencies",
        "4",
        lambda: frequencies_of(1, 1, 1, 8),
    ),
    Refusal(
        "frequencies of no axis",
        ValueError,
        "frequencies",
        "0",
        lambda: frequencies_of(0, 8, positions=integer_positions(5, 0)),
    ),
    Refusal(
        "frequencies of 65 axes",
        ValueError,
        "frequencies",
        "65",
        lambda: frequencies_of(65, 8, positions=integer_positions(5, 65)),
    ),
    Refusal("more pairs than fit", ValueError, "frequencies", "9", lambda: frequencies_of(9)),
    Refusal(
        "more pairs per head than fit",
        ValueError,
        "frequencies",
        "9",
        lambda: frequencies_of(1, 1, 9),
    ),
    Refusal(
        "negative start",
        ValueError,
        "start",
        "-1",
        lambda: {"start": -1, **frequencies_of(4)},
    ),
    Refusal("start that pushes a pair out", ValueError, "frequencies", "8", lambda: {"start": 1}),
    Refusal(
        "start at the end of the int64 range",
        ValueError,
        "start",
        "9223372036854775807",
        lambda: {"start": 2**63 - 1, **frequencies_of(4)},
    ),
    Refusal(
        "start that pushes a flat pair into the next head",
        ValueError,
        "frequencies",
        "4",
        lambda: flat(start=9, **frequencies_of(4)),
    ),
    Refusal(
        "frequencies per head for another number of heads",
        ValueError,
        "frequencies",
        "3",
        lambda: {"key": None, **frequencies_of(2, 3, 8)},
    ),
    Refusal(
        "frequencies of no head",
        ValueError,
        "frequencies",
        "0",
        lambda: {"key": None, **frequencies_of(2, 0, 8)},
    ),
    Refusal(
        "frequencies per head for all heads where some rotate",
        ValueError,
        "frequencies",
        "4",
        lambda: {"key": None, "num_heads": 3, **frequencies_of(2, 4, 8)},
    ),
    Refusal(
        "key of another number of heads than frequencies per head",
        ValueError,
        "key",
        "2",
        lambda: frequencies_of(2, 4, 8),
        functional=False,
    ),
    Refusal(
        "positions without an axis for frequencies with axes",
        ValueError,
        "positions",
        "1",
        lambda: frequencies_of(2, 8, positions=integer_positions(5)),
    ),
    Refusal(
        "positions with an axis for frequencies without",
        ValueError,
        "positions",
        "2",
        lambda: {"positions": integer_positions(5, 2)},
    ),
    Refusal(
        "positions of other axes",
        ValueError,
        "positions",
        "3",
        lambda: frequencies_of(2, 8, positions=integer_positions(5, 3)),
    ),
    Refusal(
        "one coordinate for two axes",
        ValueError,
        "positions",
        "1",
        lambda: frequencies_of(2, 8, positions=integer_positions(5, 1)),
    ),
    Refusal(
        "fewer positions than tokens",
        ValueError,
        "positions",
        "4",
        lambda: {"positions": integer_positions(4)},
    ),
    Refusal(
        "more positions than tokens",
        ValueError,
        "positions",
        "6",
        lambda: {"positions": floating_positions(6)},
    ),
    Refusal(
        "one position for all tokens",
        ValueError,
        "positions",
        "1",
        lambda: {"positions": integer_positions(1)},
    ),
    Refusal(
        "positions without dimensions",
        ValueError,
        "positions",
        "0",
        lambda: {"positions": torch.tensor(3)},
    ),
    Refusal(
        "positions for another batch",
        ValueError,
        "positions",
        "3 in shape [3, 5]",
        lambda: {"positions": integer_positions(3, 5)},
    ),
    Refusal(
        "positions on two axes for another batch",
        ValueError,
        "positions",
        "3 in shape [3, 5, 2]",
        lambda: frequencies_of(2, 8, positions=integer_positions(3, 5, 2)),
    ),
    Refusal(
        "positions of more dimensions than tokens have",
        ValueError,
        "positions",
        "3",
        lambda: {"positions": integer_positions(1, 2, 5)},
    ),
    Refusal(
        "positions on two axes of more dimensions than tokens have",
        ValueError,
        "positions",
        "4",
        lambda: frequencies_of(2, 8, positions=integer_positions(1, 2, 5, 2)),
    ),
    Refusal(
        "frequencies on another device",
        ValueError,
        "frequencies",
        "meta",
        lambda: {"frequencies": some_frequencies(8).to("meta")},
        meta=False,
    ),
    Refusal(
        "positions on another device",
        ValueError,
        "positions",
        "meta",
        lambda: {"positions": integer_positions(5).to("meta")},
        meta=False,
    ),
]
OWN_REFUSALS += [
    Refusal(
        f"frequencies inside the {role}",
        ValueError,
        "frequencies",
        TWICE,
        lambda role=role: frequencies_inside(role),
        functional=False,
        meta=False,
    )
    for role in ("query", "key")
]
OWN_REFUSALS += [
    Refusal(
        f"{dtype} positions inside the {role}",
        ValueError,
        "positions",
        TWICE,
        lambda role=role, dtype=dtype: positions_inside(role, dtype),
        functional=False,
        meta=False,
    )
    for role in ("query", "key")
    for dtype in (torch.int32, torch.float32)
]

OF_TABLES = {"cos", "sin", "positions"}
SHARED_REFUSALS = [
    refusal
    for refusal in REFUSALS
    if refusal.subject not in OF_TABLES and not refusal.change().keys() & OF_TABLES
]
ALL_REFUSALS = SHARED_REFUSALS + OWN_REFUSALS


def refused(refusal: Refusal) -> tuple[dict[str, object], list[object], list[object]]:
    """The refused call as keywords, and its arguments and options in the operator's order."""
    call = accepted() | refusal.change()
    return call, [call[name] for name in ARGUMENTS], [call[name] for name in OPTIONS]


def test_the_call_that_every_row_starts_from_is_accepted():
    call = accepted()
    query, key = call["query"].clone(), call["key"].clone()
    rope_ext.apply_frequencies_(**call)
    tables = rope_ext.cos_sin(call["positions"], call["frequencies"])
    assert_rotated(call["query"], query, *tables)
    assert_rotated(call["key"], key, *tables)


def test_rows_about_query_and_key_hold_for_both_forms_of_angles():
    assert {refusal.subject for refusal in SHARED_REFUSALS} == {
        "query",
        "key",
        "seq_dim",
        "head_dim",
        "num_heads",
    }


@pytest.mark.parametrize("refusal", ALL_REFUSALS, ids=name)
def test_apply_refuses_and_changes_nothing(refusal: Refusal):
    call, arguments, options = refused(refusal)
    before = snapshot(arguments)
    with pytest.raises(refusal.error, match=refusal.message):
        rope_ext.apply_frequencies_(**call)
    with pytest.raises(refusal.error, match=refusal.message):
        APPLY(*arguments, *options)
    assert_nothing_changed(arguments, before)


@pytest.mark.parametrize("refusal", [r for r in ALL_REFUSALS if r.functional], ids=name)
def test_rotate_refuses(refusal: Refusal):
    call, arguments, options = refused(refusal)
    x, _, *angles = arguments
    message = refusal.message_about("x" if refusal.subject == "query" else refusal.subject)
    with pytest.raises(refusal.error, match=message):
        ROTATE(x, *angles, *options)
    with pytest.raises(refusal.error, match=message):
        rope_ext.rotate_frequencies(x, *angles, **{option: call[option] for option in OPTIONS})


@pytest.mark.parametrize("refusal", [r for r in ALL_REFUSALS if r.meta], ids=name)
def test_apply_refuses_the_same_on_the_meta_device(refusal: Refusal):
    _, arguments, options = refused(refusal)
    on_meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
    with pytest.raises(refusal.error, match=refusal.message):
        APPLY(*on_meta, *options)


@pytest.mark.parametrize(
    ("error", "subject", "received", "change"),
    [
        (ValueError, "frequencies", "0", lambda: {"frequencies": torch.tensor(1.0)}),
        (ValueError, "frequencies", "4", lambda: {"frequencies": torch.ones(1, 1, 1, 8)}),
        (ValueError, "frequencies", "65", lambda: {"frequencies": torch.ones(65, 8)}),
        (TypeError, "frequencies", "float16", lambda: {"frequencies": torch.ones(8).half()}),
        (ValueError, "positions", "none", lambda: {"positions": torch.tensor(3)}),
        (ValueError, "positions", "3", lambda: {"positions": torch.zeros(5, 3)}),
        (TypeError, "positions", "int16", lambda: {"positions": torch.zeros(5, 2).short()}),
        (
            TypeError,
            "positions",
            "float64",
            lambda: {"frequencies": torch.ones(2, 8, dtype=torch.int64)},
        ),
        (ValueError, "frequencies", "meta", lambda: {"frequencies": torch.ones(2, 8).to("meta")}),
        (TypeError, "dtype", "int32", lambda: {"dtype": torch.int32}),
        (TypeError, "dtype", "complex64", lambda: {"dtype": torch.complex64}),
    ],
)
def test_cos_sin_refuses(
    error: type[Exception], subject: str, received: str, change: Callable[[], dict]
):
    call = {"positions": floating_positions(5, 2), "frequencies": some_frequencies(2, 8)}
    with pytest.raises(error, match=rf"^{subject} must .*\bgot {received}"):
        rope_ext.cos_sin(**call | change())


@pytest.mark.parametrize(
    ("subject", "changes"),
    [
        ("frequencies", {"query": torch.empty(0, 5, 4, 16), **frequencies_of(9)}),
        ("start", {"query": torch.empty(2, 0, 4, 16), "positions": None, "start": -1}),
        ("positions", {"query": torch.empty(0, 5, 4, 16), "positions": integer_positions(2)}),
        ("frequencies", {"query": torch.empty(2, 5, 0, 16), **frequencies_of(2, 3, 8)}),
    ],
    ids=["columns", "start", "positions", "heads"],
)
def test_empty_tensors_do_not_hide_a_wrong_argument(subject: str, changes: dict):
    with pytest.raises(ValueError, match=f"^{subject} must"):
        rope_ext.apply_frequencies_(**accepted() | {"key": None} | changes)


@pytest.mark.parametrize("role", ["query", "key"])
def test_a_leaf_that_requires_grad_is_refused_before_anything_changes(role: str):
    call = accepted()
    call[role].requires_grad_()
    tensors = call["query"], call["key"]
    before = snapshot(tensors)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        rope_ext.apply_frequencies_(**call)
    assert_nothing_changed(tensors, before)


@pytest.mark.parametrize("role", ["query", "key"])
def test_an_inference_tensor_is_refused_outside_inference_mode(role: str):
    call = accepted()
    with torch.inference_mode():
        call[role] = call[role].clone()
    kept = call["query"].clone(), call["key"].clone()
    with pytest.raises(RuntimeError, match=r"^query and key must not be inference tensors"):
        rope_ext.apply_frequencies_(**call)
    assert torch.equal(call["query"], kept[0])
    assert torch.equal(call["key"], kept[1])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
@pytest.mark.parametrize("subject", ["frequencies", "positions"])
def test_angles_with_a_tangent_are_refused_before_anything_changes(subject: str):
    call = accepted() | {"positions": floating_positions(5)}
    tensors = call["query"], call["key"]
    before = snapshot(tensors)
    with forward_ad.dual_level():
        call[subject] = forward_ad.make_dual(call[subject], torch.ones_like(call[subject]))
        angles = call["positions"], call["frequencies"]
        message = f"^{subject} must not have a tangent: forward derivatives with respect to angles"
        with pytest.raises(RuntimeError, match=message):
            rope_ext.apply_frequencies_(**call)
        with pytest.raises(RuntimeError, match=message):
            rope_ext.rotate_frequencies(call["query"], *angles)
        with pytest.raises(RuntimeError, match=message):
            rope_ext.cos_sin(*angles)
    assert_nothing_changed(tensors, before)


def test_vmap_refuses_to_rotate_in_place():
    query, _, *angles = a_call()
    before = query.clone()
    with pytest.raises(RuntimeError, match="rope::apply_frequencies"):
        torch.func.vmap(lambda x: rope_ext.apply_frequencies_(x, None, *angles))(query)
    assert torch.equal(query, before)


# torch loops over the batch and says so.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_vmap_loops_over_rotate():
    x, _, *angles = a_call()
    loop = torch.func.vmap(lambda row: rope_ext.rotate_frequencies(row, *angles))(x)
    assert_same_bits(loop, rope_ext.rotate_frequencies(x, *angles))


# Memory


@dtypes
@pytest.mark.parametrize("layout", [BSHD, BHSD, FLAT], ids=name)
def test_apply_allocates_nothing(layout: Layout, dtype: torch.dtype):
    query = normal(*layout.shape(64, 4, 64), dtype=dtype, seed=3)
    key = normal(*layout.shape(64, 4, 64), dtype=dtype, seed=4)
    options = layout.options(64)
    for angles in (
        (None, some_frequencies(32)),
        (floating_positions(64, 2), some_frequencies(2, 4, 32).float()),
        (integer_positions(2, 64).t()[:, :1], turns(some_frequencies(32, 1)).t()),
    ):
        assert (
            allocations(
                lambda angles=angles: rope_ext.apply_frequencies_(query, key, *angles, **options)
            )
            == []
        )


@pytest.mark.parametrize("layout", [BSHD, BHSD, FLAT], ids=name)
def test_rotate_allocates_its_result_alone(layout: Layout):
    x = normal(*layout.shape(64, 4, 64), dtype=torch.bfloat16)
    angles = floating_positions(64, 2), some_frequencies(2, 4, 32)
    options = layout.options(64)
    sizes = allocations(lambda: rope_ext.rotate_frequencies(x, *angles, **options))
    assert sizes == [x.nbytes]


def test_apply_allocates_nothing_of_the_size_of_a_token_while_it_records_a_graph():
    leaf = normal(2, 64, 4, 64).requires_grad_()
    frequencies = some_frequencies(2, 4, 32).requires_grad_()
    query, key = leaf * 1, leaf * 2
    sizes = allocations(lambda: rope_ext.apply_frequencies_(query, key, None, frequencies))
    assert [size for size in sizes if size >= 4 * 64 * 4] == []


# Shapes without data, and compilers


@pytest.mark.parametrize(("layout", "form"), FREQUENCY_FORMS_BY_LAYOUT)
def test_every_form_is_accepted_on_the_meta_device(layout: Layout, form: Form):
    positions, frequencies = form(layout, 5, 3, 8)
    query = torch.empty(layout.shape(5, 3, 16), device="meta")
    key = torch.empty_like(query)
    angles = None if positions is None else positions.to("meta"), frequencies.to("meta")
    assert APPLY(query, key, *angles, 1.0, **layout.options(16)) is None
    y = rope_ext.rotate_frequencies(query, *angles, **layout.options(16))
    assert (y.device.type, y.shape) == ("meta", query.shape)
    if positions is not None:
        made = rope_ext.cos_sin(*angles, dtype=torch.float64)
        real = rope_ext.cos_sin(positions, frequencies, dtype=torch.float64)
        for table, on_meta in zip(real, made, strict=True):
            assert on_meta.device.type == "meta"
            assert (on_meta.shape, on_meta.dtype) == (table.shape, table.dtype)


def test_fake_tensors_rotate():
    with FakeTensorMode():
        query, key = torch.empty(2, 5, 4, 16), torch.empty(2, 5, 2, 16)
        frequencies = torch.empty(8)
        assert rope_ext.apply_frequencies_(query, key, None, frequencies) == (query, key)
        assert rope_ext.rotate_frequencies(query, None, frequencies).shape == (2, 5, 4, 16)
        assert rope_ext.cos_sin(torch.empty(2, 5), frequencies)[0].shape == (2, 5, 8)
        with pytest.raises(ValueError, match=r"^positions must"):
            rope_ext.rotate_frequencies(query, torch.empty(4), frequencies)


def test_symbolic_sizes_stay_symbolic():
    def rotated(x, positions, frequencies):
        return rope_ext.rotate_frequencies(x, positions, frequencies)

    arguments = normal(2, 5, 4, 16), integer_positions(2, 5, 3), some_frequencies(3, 4, 8)
    graph = make_fx(rotated, tracing_mode="symbolic")(*arguments)
    (call,) = (node for node in graph.graph.nodes if node.op == "call_function")
    assert call.target == ROTATE.default
    batch, tokens, *_ = call.meta["val"].shape
    assert isinstance(batch, torch.SymInt)
    assert isinstance(tokens, torch.SymInt)
    larger = normal(3, 9, 4, 16), integer_positions(3, 9, 3), some_frequencies(3, 4, 8)
    assert torch.equal(graph(*larger), rotated(*larger))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
@both_kinds
def test_operators_pass_the_checks_of_torch(places: Callable[..., Tensor]):
    positions = places(5, 2)
    positions.requires_grad_(positions.is_floating_point())
    query = normal(5, 2, 8).requires_grad_().clone()
    frequencies = some_frequencies(2, 2, 4).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, arguments in (
        (APPLY, (query, None, positions, frequencies)),
        (ROTATE, (query, positions, frequencies)),
        (torch.ops.rope.cos_sin, (positions, frequencies)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=tests)


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_operators_compile_in_one_graph_with_their_gradients():
    def loss(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
        query, key = rope_ext.apply_frequencies_(x * 1, x[..., :1, :] * 2, positions, frequencies)
        turned = rope_ext.rotate_frequencies(query, positions, frequencies, interleaved=True)
        cos, sin = rope_ext.cos_sin(positions, frequencies, dtype=torch.float64)
        return (turned * key).sum() + (cos * sin * turned[..., :1, :4]).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for tokens in (5, 9):
        x = normal(2, tokens, 4, 8, dtype=torch.float64).requires_grad_()
        positions = floating_positions(tokens, 2).requires_grad_()
        frequencies = some_frequencies(2, 1, 4).requires_grad_()
        inputs = x, positions, frequencies
        results = [function(*inputs) for function in (loss, compiled)]
        gradients = [torch.autograd.grad(result, inputs) for result in results]
        torch.testing.assert_close(results[1], results[0])
        torch.testing.assert_close(gradients[1], gradients[0])

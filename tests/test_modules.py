"""RotaryEmbedding: which rotation it makes, what it may overwrite, and what its state survives."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from inputs import DTYPES, name, normal
from tolerance import COMPUTE, assert_rotated, assert_same_bits
from torch import Tensor

import rope_ext
from rope_ext import RotaryEmbedding, frequencies, reference

pytestmark = pytest.mark.usefixtures("device")

TOKENS, HEAD_DIM = 5, 16


def tables_for(
    x: Tensor, rotary_dim: int = HEAD_DIM, base: float = 10000.0, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The tables that a module should use for ``x``: float64 angles, rounded once."""
    if positions is None:
        positions = torch.arange(TOKENS)
    return frequencies.tables(positions, frequencies.standard(rotary_dim, base), COMPUTE[x.dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("seq_dim", [-3, -2], ids=["tokens first", "heads first"])
@pytest.mark.parametrize(("rotary_dim", "start"), [(None, 0), (8, 0), (8, 8), (6, 3)])
def test_query_and_key_rotate_as_the_reference_says(
    rotary_dim: int | None,
    start: int,
    seq_dim: int,
    interleaved: bool,
    inplace: bool,
    dtype: torch.dtype,
):
    rotary = RotaryEmbedding(
        HEAD_DIM,
        base=500.0,
        rotary_dim=rotary_dim,
        start=start,
        interleaved=interleaved,
        seq_dim=seq_dim,
        inplace=inplace,
    )
    shapes = [(2, TOKENS, 4, HEAD_DIM), (2, TOKENS, 2, HEAD_DIM)]
    query, key = (normal(*shape, dtype=dtype, seed=len(shape)) for shape in shapes)
    if seq_dim == -2:
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    tables = tables_for(query, rotary_dim or HEAD_DIM, 500.0)
    options = {"start": start, "seq_dim": seq_dim, "interleaved": interleaved}
    new_query, new_key = rotary(query.clone(), key.clone())
    assert_rotated(new_query, query, *tables, **options)
    assert_rotated(new_key, key, *tables, **options)


def test_the_default_base_is_that_of_the_paper():
    x = normal(TOKENS, 2, HEAD_DIM)
    assert_rotated(RotaryEmbedding(HEAD_DIM)(x.clone()), x, *tables_for(x, base=10000.0))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=name)
@pytest.mark.parametrize("shape", [(TOKENS,), (1, TOKENS), (2, TOKENS)])
def test_positions_may_be_given(shape: tuple[int, ...], dtype: torch.dtype):
    x = normal(2, TOKENS, 3, HEAD_DIM)
    positions = torch.randint(0, 4000, shape, dtype=dtype)
    new_x = RotaryEmbedding(HEAD_DIM)(x.clone(), positions=positions)
    assert_rotated(new_x, x, *tables_for(x, positions=positions))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=name)
def test_positions_may_lie_beyond_any_that_came_before(dtype: torch.dtype):
    rotary = RotaryEmbedding(HEAD_DIM)
    x = normal(TOKENS, 3, HEAD_DIM, dtype=dtype)
    for last in (TOKENS, 3, 100, 99, 5000, 131072):
        positions = torch.arange(last - 1, last - 1 - TOKENS, -1).clamp(min=0)
        new_x = rotary(x.clone(), positions=positions)
        assert_rotated(new_x, x, *tables_for(x, positions=positions))


def test_sequences_may_grow_and_shrink():
    rotary = RotaryEmbedding(HEAD_DIM)
    for tokens in (3, 1, 700, 20, 5000):
        x = normal(tokens, 1, HEAD_DIM)
        assert_rotated(rotary(x.clone()), x, *tables_for(x, positions=torch.arange(tokens)))


def test_query_alone_is_returned_alone():
    x = normal(TOKENS, 2, HEAD_DIM)
    assert isinstance(RotaryEmbedding(HEAD_DIM)(x.clone()), Tensor)
    query, key = RotaryEmbedding(HEAD_DIM)(x.clone(), x.clone())
    assert_same_bits(query, key)


def test_in_place_returns_the_tensors_that_it_was_given():
    query, key = normal(TOKENS, 2, HEAD_DIM), normal(TOKENS, 1, HEAD_DIM)
    rotary = RotaryEmbedding(HEAD_DIM)
    new_query, new_key = rotary(query, key)
    assert new_query is query
    assert new_key is key
    assert rotary(query) is query
    view = query.transpose(0, 1).transpose(0, 1)
    assert rotary(view) is view


def test_not_in_place_leaves_its_inputs_alone():
    query, key = normal(TOKENS, 2, HEAD_DIM), normal(TOKENS, 1, HEAD_DIM)
    kept = query.clone(), key.clone()
    new_query, new_key = RotaryEmbedding(HEAD_DIM, inplace=False)(query, key)
    assert_same_bits(query, kept[0])
    assert_same_bits(key, kept[1])
    assert (query._version, key._version) == (0, 0)
    assert_rotated(new_query, query, *tables_for(query))
    assert_rotated(new_key, key, *tables_for(key))


def test_a_tensor_under_grad_that_is_no_view_is_rotated_in_place():
    leaf = normal(TOKENS, 2, HEAD_DIM).requires_grad_()
    query, key = leaf * 1, leaf * 2
    new_query, new_key = RotaryEmbedding(HEAD_DIM)(query, key)
    assert new_query is query
    assert new_key is key


IN_NEED_OF_A_COPY = {
    "leaf": lambda leaf: leaf,
    "view of a leaf": lambda leaf: leaf.view(leaf.shape),
    "view": lambda leaf: (leaf * 1).view(leaf.shape),
    "slice": lambda leaf: torch.cat((leaf, leaf), dim=-2)[:, :2],
    "chunk": lambda leaf: torch.cat((leaf, leaf), dim=-2).chunk(2, dim=-2)[0],
}


@pytest.mark.parametrize("role", ["query", "key", "both"])
@pytest.mark.parametrize("given", IN_NEED_OF_A_COPY.values(), ids=IN_NEED_OF_A_COPY)
def test_leaves_and_views_under_grad_are_rotated_functionally(given, role: str):
    leaf = normal(TOKENS, 2, HEAD_DIM, dtype=torch.float64).requires_grad_()
    plain = normal(TOKENS, 2, HEAD_DIM, dtype=torch.float64, seed=1)
    query = given(leaf) if role in ("query", "both") else plain.clone()
    key = given(leaf) if role in ("key", "both") else plain.clone()
    old_query, old_key = query.detach().clone(), key.detach().clone()
    tables = tables_for(query)

    new_query, new_key = RotaryEmbedding(HEAD_DIM)(query, key)
    assert_rotated(new_query.detach(), old_query, *tables)
    assert_rotated(new_key.detach(), old_key, *tables)
    for old, tensor in ((old_query, query), (old_key, key)):
        if tensor.requires_grad:
            assert_same_bits(tensor.detach(), old)

    incoming = normal(TOKENS, 2, HEAD_DIM, dtype=torch.float64, seed=2)
    torch.autograd.backward(
        [tensor for tensor in (new_query, new_key) if tensor.requires_grad],
        [incoming] * (2 if role == "both" else 1),
    )
    share = reference.rotate(incoming, *tables, inverse=True) * (2 if role == "both" else 1)
    torch.testing.assert_close(leaf.grad, share, rtol=0, atol=8 * torch.finfo(torch.float64).eps)


def test_a_leaf_without_grad_mode_is_rotated_in_place():
    leaf = normal(TOKENS, 2, HEAD_DIM).requires_grad_()
    with torch.no_grad():
        assert RotaryEmbedding(HEAD_DIM)(leaf) is leaf


@pytest.mark.parametrize("head_dim", [-2, 0, 15])
def test_odd_or_non_positive_head_dim_is_refused(head_dim: int):
    with pytest.raises(ValueError, match=f"{head_dim}"):
        RotaryEmbedding(head_dim)


@pytest.mark.parametrize("rotary_dim", [-2, 0, 3, 15, 18])
def test_odd_non_positive_or_too_wide_rotary_dim_is_refused(rotary_dim: int):
    with pytest.raises(ValueError, match=f"^rotary_dim .*{rotary_dim}"):
        RotaryEmbedding(HEAD_DIM, rotary_dim=rotary_dim)


def test_an_odd_head_dim_is_accepted_with_an_even_rotary_dim():
    x = normal(TOKENS, 2, 15)
    assert_rotated(RotaryEmbedding(15, rotary_dim=8)(x.clone()), x, *tables_for(x, 8))


@pytest.mark.parametrize("start", [-1, 9])
def test_a_span_outside_of_the_head_is_refused(start: int):
    with pytest.raises(ValueError, match=rf"^rotary_dim must fit .*\bstart={start}$"):
        RotaryEmbedding(HEAD_DIM, rotary_dim=8, start=start)


def test_all_from_start_on_is_rotated_unless_told():
    x = normal(TOKENS, 2, HEAD_DIM)
    assert_rotated(RotaryEmbedding(HEAD_DIM, start=4)(x.clone()), x, *tables_for(x, 12), start=4)


@pytest.mark.parametrize("base", [0.0, -1.0, math.inf, math.nan])
def test_base_that_is_not_positive_and_finite_is_refused(base: float):
    with pytest.raises(ValueError, match=f"^base must be positive and finite, got {base}"):
        RotaryEmbedding(HEAD_DIM, base=base)


@pytest.mark.parametrize("seq_dim", [-4, -1, 1])
def test_another_seq_dim_is_refused(seq_dim: int):
    with pytest.raises(ValueError, match=f"^seq_dim .*{seq_dim}"):
        RotaryEmbedding(HEAD_DIM, seq_dim=seq_dim)


def test_a_head_dim_other_than_its_own_is_refused():
    with pytest.raises(ValueError, match="32"):
        RotaryEmbedding(HEAD_DIM)(normal(TOKENS, 2, 32))


@pytest.mark.parametrize("shape", [(), (HEAD_DIM,), (TOKENS, HEAD_DIM)])
def test_a_tensor_without_heads_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"^query must have at least 3 dimensions .*, got"):
        RotaryEmbedding(HEAD_DIM)(normal(*shape))


def test_positions_may_be_negative():
    x = normal(TOKENS, 2, HEAD_DIM)
    positions = torch.tensor([-1, 0, -70000, 2, 3])
    new_x = RotaryEmbedding(HEAD_DIM)(x.clone(), positions=positions)
    assert_rotated(new_x, x, *tables_for(x, positions=positions))


WRONG_POSITIONS = {
    "too few": (torch.arange(4), ValueError),
    "too many": (torch.arange(7), ValueError),
    "one for all": (torch.arange(1), ValueError),
    "without dimensions": (torch.tensor(0), ValueError),
    "for another batch": (torch.zeros(3, TOKENS, dtype=torch.int64), ValueError),
    "per head": (torch.zeros(2, TOKENS, 4, dtype=torch.int64), ValueError),
    "floating": (torch.arange(float(TOKENS)), TypeError),
    "boolean": (torch.ones(TOKENS, dtype=torch.bool), TypeError),
}


@pytest.mark.parametrize("shift", [0, -1, 2**20], ids=["small", "negative", "large"])
@pytest.mark.parametrize(("positions", "error"), WRONG_POSITIONS.values(), ids=WRONG_POSITIONS)
def test_wrong_positions_are_refused_whatever_their_values(
    positions: Tensor, error: type[Exception], shift: int
):
    if positions.dtype != torch.bool:
        positions = positions + shift
    x = normal(2, TOKENS, 4, HEAD_DIM)
    kept = x.clone()
    with pytest.raises(error, match=r"^positions must"):
        RotaryEmbedding(HEAD_DIM)(x, positions=positions)
    assert_same_bits(x, kept)


def test_options_take_keywords_only():
    with pytest.raises(TypeError):
        RotaryEmbedding(HEAD_DIM, 10000.0)


def test_nothing_is_stored_in_the_state_dict():
    rotary = RotaryEmbedding(HEAD_DIM)
    rotary(normal(TOKENS, 2, HEAD_DIM))
    assert rotary.state_dict() == {}
    assert list(rotary.parameters()) == []
    rotary.load_state_dict({})


def saved_and_loaded(rotary: RotaryEmbedding) -> RotaryEmbedding:
    file = io.BytesIO()
    torch.save(rotary, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


CHANGES = {
    "half": lambda rotary: rotary.half(),
    "bfloat16": lambda rotary: rotary.bfloat16(),
    "to(float16)": lambda rotary: rotary.to(torch.float16),
    "to(cpu)": lambda rotary: rotary.to("cpu"),
    "float": lambda rotary: rotary.half().float(),
    "double": lambda rotary: rotary.double(),
    "inside another module": lambda rotary: torch.nn.Sequential(rotary).half()[0],
    "deepcopy": copy.deepcopy,
    "pickle": lambda rotary: pickle.loads(pickle.dumps(rotary)),
    "torch.save": saved_and_loaded,
    "meta and to_empty": lambda rotary: rotary.to("meta").to_empty(device="cpu"),
    "eval": lambda rotary: rotary.eval(),
}


@pytest.mark.parametrize("used_before", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_rotation_survives(change, dtype: torch.dtype, used_before: bool):
    rotary = RotaryEmbedding(HEAD_DIM, base=500.0, rotary_dim=8, start=3, interleaved=True)
    x = normal(TOKENS, 2, HEAD_DIM, dtype=dtype)
    if used_before:
        rotary(x.clone())
    changed = change(rotary)
    tables = tables_for(x, 8, 500.0)
    assert_rotated(changed(x.clone()), x, *tables, start=3, interleaved=True)


def test_a_module_made_on_the_meta_device_rotates_after_to_empty():
    with torch.device("meta"):
        rotary = RotaryEmbedding(HEAD_DIM)
    rotary.to_empty(device="cpu")
    x = normal(TOKENS, 2, HEAD_DIM)
    assert_rotated(rotary(x.clone()), x, *tables_for(x))


def test_a_module_rotates_on_the_meta_device():
    query = torch.empty(2, TOKENS, 4, HEAD_DIM, device="meta")
    rotary = RotaryEmbedding(HEAD_DIM)
    assert rotary(query).shape == query.shape
    x = normal(TOKENS, 2, HEAD_DIM)
    assert_rotated(rotary(x.clone()), x, *tables_for(x))


def test_one_module_serves_all_dtypes_in_turn():
    rotary = RotaryEmbedding(HEAD_DIM)
    for dtype in (*DTYPES, *reversed(DTYPES)):
        x = normal(TOKENS, 2, HEAD_DIM, dtype=dtype)
        assert_rotated(rotary(x.clone()), x, *tables_for(x))


def test_a_module_used_in_inference_mode_first_can_be_trained_later():
    rotary = RotaryEmbedding(HEAD_DIM)
    with torch.inference_mode():
        rotary(normal(TOKENS, 2, HEAD_DIM))
    leaf = normal(TOKENS, 2, HEAD_DIM).requires_grad_()
    rotary(leaf * 1).sum().backward()
    expected = reference.rotate(torch.ones_like(leaf), *tables_for(leaf), inverse=True)
    assert_same_bits(
        leaf.grad, rope_ext.rotate(torch.ones_like(leaf), *tables_for(leaf), inverse=True)
    )
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=0, atol=2**-22)


def test_the_options_show_in_its_text():
    text = str(RotaryEmbedding(HEAD_DIM, base=500.0, rotary_dim=8, start=3, interleaved=True))
    for word in ("16", "500", "8", "3", "interleaved"):
        assert word in text

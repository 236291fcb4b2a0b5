"""The same bits from every instruction set and any number of threads, and how one is chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from inputs import (
    CAPABILITIES,
    DTYPES,
    LAYOUTS,
    ROWS,
    Layout,
    angle_tables,
    every_number,
    name,
    near_halfway,
    normal,
    special,
    strided,
)
from inputs import token_positions as some_positions
from tolerance import assert_rotated, assert_same_bits

import rope_ext
from rope_ext import _C

AVAILABLE = _C.cpu_capabilities()

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
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
pairings = pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])


def assert_all_bits_as_scalar(capability: str, x: torch.Tensor, *tables, **options) -> None:
    """Compare one capability with scalar, in place and functional."""
    _C.set_cpu_capability("scalar")
    expected = rope_ext.rotate(x, *tables, **options)
    _C.set_cpu_capability(capability)
    assert_same_bits(rope_ext.rotate(x, *tables, **options), expected)
    in_place = x.clone(memory_format=torch.preserve_format)
    rope_ext.apply_(in_place, None, *tables, **options)
    assert_same_bits(in_place, expected)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pairings
@dtypes
@pytest.mark.parametrize("pairs", [*range(1, 71), 128, 256, 513, 600])
def test_every_number_of_pairs_gives_the_bits_of_scalar(
    pairs: int, dtype: torch.dtype, interleaved: bool, capability: str
):
    x = normal(2, 6, 2 * pairs, dtype=dtype)
    assert_all_bits_as_scalar(capability, x, *angle_tables(2, pairs), interleaved=interleaved)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pairings
@dtypes
@pytest.mark.parametrize("pairs", [1, 7, 16, 33, 64])
def test_special_numbers_give_the_bits_of_scalar(
    pairs: int, dtype: torch.dtype, interleaved: bool, capability: str
):
    x = special(16, 6, 2 * pairs, dtype=dtype)
    cos, sin = angle_tables(16, pairs)
    cos[::5], sin[::5] = 1.0, 0.0
    cos[1::5], sin[1::5] = 0.0, -1.0
    assert_all_bits_as_scalar(capability, x, cos, sin, interleaved=interleaved)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pairings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_every_16_bit_number_gives_the_bits_of_scalar(
    dtype: torch.dtype, interleaved: bool, capability: str
):
    x = every_number(dtype)
    assert_all_bits_as_scalar(capability, x, *angle_tables(16, 64), interleaved=interleaved)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_every_rounding_to_16_bits_gives_the_bits_of_scalar(dtype: torch.dtype, capability: str):
    assert_all_bits_as_scalar(capability, *near_halfway(dtype))


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pairings
@dtypes
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_every_layout_gives_the_bits_of_scalar(
    layout: Layout, inverse: bool, dtype: torch.dtype, interleaved: bool, capability: str
):
    x = normal(*layout.shape(7, 9, 80), dtype=dtype)
    options = {
        **layout.options(80),
        "start": 3,
        "num_heads": 8,
        "interleaved": interleaved,
        "inverse": inverse,
    }
    cos, sin = angle_tables(ROWS, 37)
    assert_all_bits_as_scalar(capability, x, cos, sin, **options)
    assert_all_bits_as_scalar(capability, x, cos, sin, some_positions(7), **options)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pairings
@dtypes
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64, None], ids=name)
def test_every_table_dtype_gives_the_bits_of_scalar(
    table_dtype: torch.dtype | None, dtype: torch.dtype, interleaved: bool, capability: str
):
    x = normal(5, 6, 94, dtype=dtype)
    cos, sin = angle_tables(5, 47, dtype=table_dtype or dtype)
    assert_all_bits_as_scalar(capability, x, cos, sin, interleaved=interleaved)
    cos, _ = strided(cos, steps=(1, 2))
    assert_all_bits_as_scalar(capability, x, cos, sin, interleaved=interleaved)


@pytest.mark.usefixtures("restored_capability")
@vector_capabilities
@pairings
@dtypes
def test_tables_per_head_give_the_bits_of_scalar(
    dtype: torch.dtype, interleaved: bool, capability: str
):
    x = normal(2, 5, 6, 94, dtype=dtype)
    cos, sin = angle_tables(2, 5, 6, 47)
    assert_all_bits_as_scalar(capability, x, cos, sin, interleaved=interleaved)


@pytest.mark.usefixtures("restored_capability")
@pytest.mark.parametrize("capability", AVAILABLE)
@pairings
@dtypes
def test_alignment_and_strides_do_not_change_a_bit(
    dtype: torch.dtype, interleaved: bool, capability: str
):
    _C.set_cpu_capability(capability)
    x = normal(2, 5, 6, 96, dtype=dtype)
    cos, sin = angle_tables(5, 48)
    expected = rope_ext.rotate(x, cos, sin, interleaved=interleaved)
    assert_rotated(expected, x, cos, sin, interleaved=interleaved)
    for strides in (
        {"padding": (0, 0, 0, 1)},
        {"padding": (0, 0, 0, 3), "order": (0, 2, 1, 3)},
        {"steps": (1, 1, 1, 2)},
        {"order": (3, 2, 1, 0)},
        {"order": (0, 1, 3, 2)},
    ):
        view, _ = strided(x, **strides)
        rope_ext.apply_(view, None, cos, sin, interleaved=interleaved)
        assert_same_bits(view, expected)


@pytest.mark.usefixtures("restored_capability")
@pytest.mark.parametrize("capability", AVAILABLE)
@pairings
@dtypes
def test_a_layout_does_not_change_a_bit(dtype: torch.dtype, interleaved: bool, capability: str):
    _C.set_cpu_capability(capability)
    x = normal(2, 5, 6, 96, dtype=dtype)
    cos, sin = angle_tables(5, 48)
    expected = rope_ext.rotate(x, cos, sin, interleaved=interleaved)
    heads_first = rope_ext.rotate(
        x.transpose(1, 2).contiguous(), cos, sin, seq_dim=-2, interleaved=interleaved
    )
    assert_same_bits(heads_first.transpose(1, 2), expected)
    flat = rope_ext.rotate(x.flatten(-2), cos, sin, head_dim=96, interleaved=interleaved)
    assert_same_bits(flat.unflatten(-1, (6, 96)), expected)
    one_by_one = [rope_ext.rotate(row, cos, sin, interleaved=interleaved) for row in x]
    assert_same_bits(torch.stack(one_by_one), expected)


SHAPES = {
    "prefill": (1, 300, 8, 128),
    "batches": (33, 7, 8, 128),
    "one token, many heads": (1, 1, 4096, 128),
    "one long head": (1, 1, 1, 2**19),
    "two tokens, many heads": (1, 2, 1031, 128),
    "decode": (1, 1, 8, 128),
}


@pytest.mark.usefixtures("restored_threads", "restored_capability")
@pytest.mark.parametrize("capability", AVAILABLE)
@pytest.mark.parametrize("seq_dim", [-3, -2], ids=["tokens first", "heads first"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=name)
def test_the_number_of_threads_does_not_change_a_bit(
    shape: tuple[int, ...], seq_dim: int, dtype: torch.dtype, capability: str
):
    _C.set_cpu_capability(capability)
    _, tokens, _, head_dim = shape
    query, key = normal(*shape, dtype=dtype), normal(*shape[:2], 3, head_dim, dtype=dtype, seed=9)
    if seq_dim == -2:
        query, key = (tensor.transpose(1, 2).contiguous() for tensor in (query, key))
    cos, sin = angle_tables(tokens, head_dim // 2)

    def rotated(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        new_query, new_key = query.clone(), key.clone()
        rope_ext.apply_(new_query, new_key, cos, sin, seq_dim=seq_dim)
        return [new_query, new_key, rope_ext.rotate(query, cos, sin, seq_dim=seq_dim)]

    expected = rotated(1)
    assert_rotated(expected[0], query, cos, sin, seq_dim=seq_dim)
    assert_rotated(expected[1], key, cos, sin, seq_dim=seq_dim)
    assert_same_bits(expected[2], expected[0])
    for threads in (2, 3, 5, 8):
        for actual, one in zip(rotated(threads), expected, strict=True):
            assert_same_bits(actual, one)


@pytest.mark.usefixtures("restored_threads")
def test_a_wrong_position_among_many_is_found_by_any_number_of_threads():
    x = normal(1, 3000, 8, 64)
    cos, sin = angle_tables(3000, 32)
    positions = torch.arange(3000)
    positions[-1] = 3000
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        before = x.clone()
        with pytest.raises(IndexError):
            rope_ext.apply_(x, None, cos, sin, positions)
        assert torch.equal(x, before)


def test_scalar_is_always_available_and_the_best_is_the_default():
    assert AVAILABLE[0] == "scalar"
    assert set(AVAILABLE) <= set(CAPABILITIES)
    assert [capability for capability in CAPABILITIES if capability in AVAILABLE] == AVAILABLE
    if "ROPE_EXT_CPU" not in os.environ:
        assert fresh_process().stdout.strip() == AVAILABLE[-1]


@pytest.mark.usefixtures("restored_capability")
@pytest.mark.parametrize("capability", AVAILABLE)
def test_a_capability_can_be_chosen_at_any_time(capability: str):
    _C.set_cpu_capability(capability)
    assert _C.cpu_capability() == capability


@pytest.mark.usefixtures("restored_capability")
def test_an_unknown_capability_is_refused_by_name():
    before = _C.cpu_capability()
    with pytest.raises(ValueError, match=r"got sse9$"):
        _C.set_cpu_capability("sse9")
    assert _C.cpu_capability() == before


missing = pytest.mark.parametrize(
    "capability",
    [
        pytest.param(
            capability,
            marks=pytest.mark.skipif(
                capability in AVAILABLE, reason=f"this machine has {capability}"
            ),
        )
        for capability in CAPABILITIES[1:]
    ],
)


@missing
def test_a_capability_that_this_machine_lacks_is_refused_by_name(capability: str):
    with pytest.raises(ValueError, match=f"got {capability}$"):
        _C.set_cpu_capability(capability)


def fresh_process(capability: str | None = None) -> subprocess.CompletedProcess[str]:
    """Import rope_ext in a new process with ``ROPE_EXT_CPU`` set, and print what it chose."""
    environment = {k: v for k, v in os.environ.items() if k != "ROPE_EXT_CPU"}
    if capability is not None:
        environment["ROPE_EXT_CPU"] = capability
    code = "import rope_ext; print(rope_ext._C.cpu_capability())"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("capability", AVAILABLE)
def test_the_environment_forces_a_capability(capability: str):
    assert fresh_process(capability).stdout.strip() == capability


@pytest.mark.parametrize("capability", ["sse9", "AVX2 "])
def test_the_environment_cannot_name_an_unknown_capability(capability: str):
    run = fresh_process(capability)
    assert run.returncode != 0
    assert "ImportError: ROPE_EXT_CPU must be an instruction set of this processor" in run.stderr
    assert run.stderr.rstrip("\n").endswith(f"got {capability}")


@missing
def test_the_environment_cannot_force_what_this_machine_lacks(capability: str):
    run = fresh_process(capability)
    assert run.returncode != 0
    assert "ImportError: ROPE_EXT_CPU must be an instruction set of this processor" in run.stderr
    assert run.stderr.rstrip("\n").endswith(f"got {capability}")


def test_build_facts_are_reported():
    facts = _C.build_info()
    assert facts
    assert all(isinstance(fact, str) for fact in facts)

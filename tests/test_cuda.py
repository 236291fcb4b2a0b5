"""What holds on CUDA alone. What holds on every device, other tests show there too.

A call is one kernel, on the current stream of the tensors' device, and asks the device for nothing
else. An emulated device computes what a kernel says and sees every access; it does not see timing,
caches, or what the assembler makes of the kernel.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from devices import EMULATED, gpu_emu, late_streams
from inputs import (
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
    token_positions,
)
from recorder import device_work
from tolerance import assert_rotated, assert_same_bits
from torch import Tensor

import rope_ext

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("cuda")]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
pairings = pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=name)
emulated = pytest.mark.skipif(not EMULATED, reason="an emulated device alone sees every access")
several_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

TOKENS, HEADS, KEY_HEADS, HEAD_DIM = 5, 4, 2, 32


def a_call(layout: Layout = LAYOUTS[0], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key, cosines, sines and positions."""
    return [
        normal(*layout.shape(TOKENS, HEADS, HEAD_DIM), dtype=dtype),
        normal(*layout.shape(TOKENS, KEY_HEADS, HEAD_DIM), dtype=dtype, seed=1),
        *angle_tables(ROWS, HEAD_DIM // 2),
        token_positions(TOKENS),
    ]


# What the device is asked for


@dtypes
@pairings
@layouts
def test_apply_is_one_kernel_for_query_and_key_and_nothing_else(
    layout: Layout, interleaved: bool, dtype: torch.dtype
):
    call = a_call(layout, dtype)
    options = {**layout.options(HEAD_DIM), "interleaved": interleaved}
    rope_ext.apply_(*call, **options)  # the first call loads the kernel
    work = device_work(lambda: rope_ext.apply_(*call, **options))
    (kernel,) = work.kernels
    assert "rotate_heads" in kernel
    assert work.copies == work.allocations == work.synchronisations == []


@dtypes
@pytest.mark.parametrize("options", [{}, {"num_heads": 3}, {"start": 4}, {"num_heads": 0}], ids=str)
def test_rotate_is_one_kernel_and_its_result(options: dict, dtype: torch.dtype):
    query, _, cos, sin, positions = a_call(dtype=dtype)
    angles = cos[:, : HEAD_DIM // 4], sin[:, : HEAD_DIM // 4], positions
    rope_ext.rotate(query, *angles, **options)
    work = device_work(lambda: rope_ext.rotate(query, *angles, **options))
    (kernel,) = work.kernels
    assert "rotate_heads" in kernel
    assert work.allocations == [query.nbytes]
    assert work.copies == work.synchronisations == []


@pytest.mark.parametrize("shape", [(0, 5, 4, 16), (2, 0, 4, 16), (2, 5, 0, 16)], ids=str)
def test_empty_tensors_start_no_kernel(shape: tuple[int, ...]):
    query, tables = torch.empty(shape), angle_tables(ROWS, 8)
    work = device_work(lambda: rope_ext.apply_(query, query.clone(), *tables))
    assert work.kernels == []
    work = device_work(lambda: rope_ext.rotate(query, *tables))
    assert work.kernels == []


def test_a_refused_call_starts_no_kernel():
    query, key, cos, sin, _ = a_call()

    def refused() -> None:
        with pytest.raises(ValueError, match=r"^sin must"):
            rope_ext.apply_(query, key, cos, sin[:, 1:])

    assert device_work(refused).kernels == []


def test_the_backward_pass_is_one_kernel_for_query_and_key():
    *leaves, cos, sin, positions = a_call()
    given = [normal(*leaf.shape, seed=2).cpu() for leaf in leaves]
    query, key = (leaf.requires_grad_().clone() for leaf in leaves)
    rope_ext.apply_(query, key, cos, sin, positions)
    # The way back from the CPU makes a gradient that nobody else owns, without a kernel.
    results = [query.cpu(), key.cpu()]
    work = device_work(lambda: torch.autograd.backward(results, given))
    (kernel,) = work.kernels
    assert "rotate_heads" in kernel
    assert sorted(work.allocations) == sorted(gradient.nbytes for gradient in given)
    for leaf, gradient in zip(leaves, given, strict=True):
        back = cos.cpu(), sin.cpu(), positions.cpu()
        assert_same_bits(leaf.grad, rope_ext.rotate(gradient, *back, inverse=True))


def test_a_gradient_that_a_hook_keeps_is_rotated_into_a_new_tensor():
    leaf, _, cos, sin, _ = a_call()
    kept = []
    y = rope_ext.rotate(leaf.requires_grad_(), cos, sin)
    y.register_hook(kept.append)
    given = normal(*leaf.shape, seed=2).cpu()
    work = device_work(lambda: y.cpu().backward(given))
    assert len(work.kernels) == 1
    assert work.allocations == [given.nbytes] * 2
    assert_same_bits(kept[0], given)
    assert_same_bits(leaf.grad, rope_ext.rotate(given, cos.cpu(), sin.cpu(), inverse=True))


# Streams and graphs


def test_the_current_stream_is_used(cuda: torch.device):
    call = a_call()

    def stream_used(stream: torch.cuda.Stream) -> int:
        with torch.cuda.stream(stream):
            work = device_work(lambda: rope_ext.apply_(*call))
        (used,) = work.streams
        return used

    streams = [torch.cuda.default_stream(cuda), *(torch.cuda.Stream(cuda) for _ in range(2))]
    used = [stream_used(stream) for stream in streams]
    assert len(set(used)) == len(streams)
    assert [stream_used(stream) for stream in streams] == used


@dtypes
def test_a_stream_that_runs_late_changes_nothing(cuda: torch.device, dtype: torch.dtype):
    x, _, *angles = (tensor.cpu() for tensor in a_call(dtype=dtype))
    given = normal(*x.shape, dtype=dtype, seed=2).cpu()
    pinned = [tensor.pin_memory() for tensor in (x, *angles, given)]
    with torch.cuda.stream(torch.cuda.Stream(cuda)), late_streams():
        leaf, *there, incoming = (tensor.to(cuda, non_blocking=True) for tensor in pinned)
        y = rope_ext.rotate(leaf.requires_grad_(), *there)
        y.backward(incoming)
        in_place = rope_ext.apply_(y.detach().clone(), None, *there)
        turned, gradient, twice = y.detach().cpu(), leaf.grad.cpu(), in_place.cpu()
    assert_same_bits(turned, rope_ext.rotate(x, *angles))
    assert_same_bits(gradient, rope_ext.rotate(given, *angles, inverse=True))
    assert_same_bits(twice, rope_ext.rotate(turned, *angles))


def test_a_captured_graph_rotates_at_every_replay_by_the_positions_of_the_day(cuda: torch.device):
    query, key, cos, sin, positions = a_call()
    rope_ext.apply_(query.clone(), key.clone(), cos, sin, positions)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(cuda), torch.cuda.graph(graph):
        rope_ext.apply_(query, key, cos, sin, positions)
        turned = rope_ext.rotate(query, cos, sin, positions)
    expected = [tensor.cpu() for tensor in a_call()]
    assert_same_bits(query, expected[0])
    for seed in (3, 4):
        positions.copy_(token_positions(TOKENS, seed=seed))
        expected[-1] = positions.cpu()
        graph.replay()
        rope_ext.apply_(*expected)
        assert_same_bits(query, expected[0])
        assert_same_bits(key, expected[1])
        assert_same_bits(turned, rope_ext.rotate(expected[0], *expected[2:]))


# Devices


@several_devices
@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("index", [0, 1])
def test_the_tensors_device_is_used_and_the_current_one_stays(index: int, current: int):
    tensors = [tensor.cpu().to(torch.device("cuda", index)) for tensor in a_call()]
    query, key, *angles = tensors
    with torch.cuda.device(current):
        leaf = query.clone().requires_grad_()
        rope_ext.rotate(leaf, *angles).backward(query)
        assert_rotated(leaf.grad, query, *angles, inverse=True)
        assert_rotated(rope_ext.rotate(key, *angles), key, *angles)
        old_query, old_key = query.clone(), key.clone()
        rope_ext.apply_(query, key, *angles)
        assert torch.cuda.current_device() == current
    assert_rotated(query, old_query, *angles)
    assert_rotated(key, old_key, *angles)


@pytest.mark.parametrize(
    "other",
    [torch.device("cpu"), pytest.param(torch.device("cuda", 0), marks=several_devices)],
    ids=str,
)
@pytest.mark.parametrize("argument", ["key", "cos", "sin", "positions"])
def test_an_argument_on_another_device_is_refused(
    cuda: torch.device, argument: str, other: torch.device
):
    names = ["query", "key", "cos", "sin", "positions"]
    call = dict(zip(names, a_call(), strict=True))
    call[argument] = call[argument].cpu().to(other)
    kept = call["query"].cpu()
    message = rf"^{argument} must be on query's device \({cuda}\), got {other}"
    with pytest.raises(ValueError, match=message):
        rope_ext.apply_(**call)
    assert_same_bits(call["query"], kept)


# Bits


def assert_the_cpus_bits(x: Tensor, *tables: Tensor, **options: object) -> None:
    """Compare both spellings with what the CPU makes of the same numbers."""
    expected = rope_ext.rotate(x.cpu(), *(table.cpu() for table in tables), **options)
    assert_same_bits(rope_ext.rotate(x, *tables, **options), expected)
    assert_same_bits(rope_ext.apply_(x.clone(), None, *tables, **options), expected)


@pairings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_every_16_bit_number_gives_the_cpus_bits(dtype: torch.dtype, interleaved: bool):
    assert_the_cpus_bits(every_number(dtype), *angle_tables(16, 64), interleaved=interleaved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_every_rounding_to_16_bits_gives_the_cpus_bits(dtype: torch.dtype):
    assert_the_cpus_bits(*near_halfway(dtype))


@pytest.mark.sanitizer
@pairings
@dtypes
@pytest.mark.parametrize("pairs", [1, 7, 16, 33, 64])
def test_special_numbers_give_the_cpus_bits(
    cuda: torch.device, pairs: int, dtype: torch.dtype, interleaved: bool
):
    x = special(16, 6, 2 * pairs, dtype=dtype)
    cos, sin = (table.cpu() for table in angle_tables(16, pairs))
    cos[::5], sin[::5] = 1.0, 0.0
    cos[1::5], sin[1::5] = 0.0, -1.0
    assert_the_cpus_bits(x, cos.to(cuda), sin.to(cuda), interleaved=interleaved)


@dtypes
def test_float64_tables_are_rounded_to_the_cpus_bits(dtype: torch.dtype):
    table = special(64, 32, dtype=torch.float64)
    assert_the_cpus_bits(normal(64, 2, 64, dtype=dtype), table, table)


@pytest.mark.sanitizer
@pairings
@dtypes
@pytest.mark.parametrize("heads", [1, 2, 3, 7, 8, 33, 129])
@pytest.mark.parametrize("tokens", [1, 2, 33, 300])
def test_every_number_of_heads_and_tokens_rotates(
    tokens: int, heads: int, dtype: torch.dtype, interleaved: bool
):
    query, key = normal(tokens, heads, 16, dtype=dtype), normal(tokens, 3, 16, dtype=dtype, seed=1)
    cos, sin = angle_tables(tokens, 8)
    new_query, new_key = query.clone(), key.clone()
    rope_ext.apply_(new_query, new_key, cos, sin, interleaved=interleaved)
    assert_rotated(new_query, query, cos, sin, interleaved=interleaved)
    assert_rotated(new_key, key, cos, sin, interleaved=interleaved)


@pytest.mark.real_cuda("2^31 elements take minutes there")
def test_more_than_2_to_the_31_elements_rotate(cuda: torch.device):
    heads, head_dim = 16, 128
    tokens = 2**31 // (heads * head_dim) + 5
    if torch.cuda.mem_get_info(cuda)[0] < 10e9:
        pytest.skip(f"{cuda} has no 10 GB left")
    x = torch.randn(tokens, heads, head_dim, dtype=torch.bfloat16)
    cos, sin, positions = *angle_tables(ROWS, head_dim // 2), token_positions(tokens)
    turned = rope_ext.rotate(x, cos, sin, positions)
    for some in (slice(0, 9), slice(tokens // 2, tokens // 2 + 9), slice(tokens - 9, tokens)):
        assert_rotated(turned[some], x[some], cos, sin, positions[some])
    rope_ext.apply_(x, None, cos, sin, positions)
    assert torch.equal(x, turned)


# Accesses


@emulated
@pairings
@dtypes
@layouts
def test_no_two_threads_touch_the_same_element(
    layout: Layout, dtype: torch.dtype, interleaved: bool
):
    query, key, *angles = a_call(layout, dtype)
    options = {**layout.options(HEAD_DIM), "interleaved": interleaved}
    with gpu_emu.mode(race=True):
        turned = rope_ext.rotate(query, *angles, **options, num_heads=3)
        rope_ext.apply_(query.clone(), key, *angles, **options)
    assert_rotated(turned, query, *angles, **options, num_heads=3)


@emulated
@pairings
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=name)
@pytest.mark.parametrize("tokens", [1, 32])
def test_aligned_elements_are_read_and_written_once_in_whole_sectors(
    tokens: int, layout: Layout, dtype: torch.dtype, interleaved: bool
):
    query = normal(*layout.shape(tokens, 32, 128), dtype=dtype)
    key = normal(*layout.shape(tokens, 8, 128), dtype=dtype, seed=1)
    cos, sin = angle_tables(tokens, 64, dtype=dtype)
    options = {**layout.options(128), "interleaved": interleaved}
    with gpu_emu.mode(trace=True), gpu_emu.record() as log:
        rope_ext.apply_(query, key, cos, sin, **options)
    (sectors,) = log.of("sectors")
    moved = {"load": 0.0, "store": 0.0}
    for access in sectors["access"]:
        assert access["useful"] >= 1, access
        moved[access["kind"]] += 32 * access["sectors_per_request"] * access["requests"]
    elements = query.nbytes + key.nbytes
    assert moved["store"] == elements
    # What is above one reading is the tables'.
    assert elements < moved["load"] < 2 * elements


# Failures


WRONG_POSITION = """
import torch, rope_ext

device = torch.device("cuda", torch.cuda.device_count() - 1)
x, table = torch.ones(2, 5, 4, 16).to(device), torch.ones(7, 8).to(device)
positions = torch.tensor([0, 1, 2, 3, {position}], dtype=torch.{dtype}).to(device)
try:
    rope_ext.{call}(x, {key}table, table, positions)
    torch.cuda.synchronize(device)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("call", ["apply_", "rotate"])
@pytest.mark.parametrize(
    ("position", "dtype"), [(-1, "int64"), (7, "int32"), (2**32, "int64")], ids=str
)
def test_a_position_outside_of_the_table_stops_the_kernel(position: int, dtype: str, call: str):
    """In a process of its own: no later call of that process can use the device."""
    key = "None, " if call == "apply_" else ""
    code = WRONG_POSITION.format(position=position, dtype=dtype, call=call, key=key)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "device-side assert triggered" in run.stdout
    assert "Assertion `0 <= row && row < angles_.rows` failed" in run.stderr


def test_a_kernel_that_cannot_start_says_of_what_call(cuda: torch.device):
    pairs = 2**24  # of one head: more blocks than there can be
    query, table = torch.empty(1, 1, 2 * pairs, dtype=torch.float16), torch.ones(1, 1)
    message = (
        rf"^the rotation of query \[1, 1, {2 * pairs}\] by cos \[1, {pairs}\] must start on "
        rf"{cuda}, got cudaErrorInvalidConfiguration: invalid configuration argument"
    )
    with pytest.raises(RuntimeError, match=message):
        rope_ext.apply_(query, None, table.expand(1, pairs), table.expand(1, pairs))
    x, _, *angles = a_call()
    assert_rotated(rope_ext.rotate(x, *angles), x, *angles)

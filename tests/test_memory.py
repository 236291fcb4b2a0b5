"""In place means in place: what is allocated, by PyTorch's allocator and by the system."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from inputs import DTYPES, LAYOUTS, Layout, angle_tables, name, normal, strided
from recorder import allocations

import rope_ext

TOKENS, HEADS, HEAD_DIM = 64, 4, 64

on_every_device = pytest.mark.usefixtures("device")


def rows_of(x: torch.Tensor) -> int:
    """The bytes of one token of a tensor, the smallest copy that one could want to hide."""
    return HEADS * HEAD_DIM * x.element_size()


@on_every_device
@pytest.mark.real_cuda("torch's own kernels make the copy")
def test_the_measure_sees_a_temporary_copy():
    x = normal(TOKENS, HEADS, HEAD_DIM)
    assert allocations(lambda: x.copy_(x.clone().neg())) == [x.nbytes, x.nbytes]


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_apply_allocates_nothing(layout: Layout, interleaved: bool, dtype: torch.dtype):
    query = normal(*layout.shape(TOKENS, HEADS, HEAD_DIM), dtype=dtype, seed=3)
    key = normal(*layout.shape(TOKENS, HEADS, HEAD_DIM), dtype=dtype, seed=4)
    cos, sin = angle_tables(TOKENS, HEAD_DIM // 2)
    options = {**layout.options(HEAD_DIM), "interleaved": interleaved}
    assert allocations(lambda: rope_ext.apply_(query, key, cos, sin, **options)) == []


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.float64, None], ids=name)
def test_apply_allocates_nothing_for_strides_positions_or_other_table_dtypes(
    dtype: torch.dtype, table_dtype: torch.dtype | None
):
    query, _ = strided(
        normal(2, TOKENS, HEADS, HEAD_DIM, dtype=dtype), order=(2, 0, 3, 1), steps=(1, 2, 1, 3)
    )
    cos, sin = angle_tables(TOKENS, HEAD_DIM // 2, dtype=table_dtype or dtype)
    cos, _ = strided(cos, order=(1, 0), steps=(2, 1))
    positions = torch.arange(TOKENS, dtype=torch.int32).flip(0)
    sizes = allocations(lambda: rope_ext.apply_(query, None, cos, sin, positions))
    assert [size for size in sizes if size >= rows_of(query)] == []


@on_every_device
@pytest.mark.parametrize("views", [False, True], ids=["tensors", "views"])
def test_apply_allocates_nothing_while_it_records_a_graph(views: bool):
    leaf = normal(2, TOKENS, HEADS, HEAD_DIM).requires_grad_()
    query, key = leaf * 1, leaf * 2
    if views:
        query, key = query.transpose(0, 1).transpose(0, 1), key[:, :, :2]
    cos, sin = angle_tables(TOKENS, HEAD_DIM // 2)
    sizes = allocations(lambda: rope_ext.apply_(query, key, cos, sin))
    assert [size for size in sizes if size >= rows_of(query)] == []


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=name)
def test_rotate_allocates_its_result_alone(layout: Layout, interleaved: bool, dtype: torch.dtype):
    x = normal(*layout.shape(TOKENS, HEADS, HEAD_DIM), dtype=dtype)
    cos, sin = angle_tables(TOKENS, HEAD_DIM // 2)
    options = {**layout.options(HEAD_DIM), "interleaved": interleaved}
    assert allocations(lambda: rope_ext.rotate(x, cos, sin, **options)) == [x.nbytes]


@on_every_device
def test_rotate_allocates_its_result_alone_for_a_strided_part_of_a_tensor():
    x, _ = strided(normal(2, TOKENS, HEADS, HEAD_DIM), order=(2, 0, 3, 1), steps=(1, 2, 1, 3))
    cos, sin = angle_tables(TOKENS, HEAD_DIM // 4)
    sizes = allocations(lambda: rope_ext.rotate(x, cos, sin, start=7, num_heads=3))
    assert sizes == [x.numel() * x.element_size()]


PEAK = """
import sys
import torch
import rope_ext

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

query = torch.ones(1, 4096, 64, 128, dtype=torch.bfloat16)
cos = sin = torch.ones(4096, 64)
rope_ext.apply_(query[:, :2].clone(), None, cos, sin)
before = peak()
rope_ext.apply_(query, None, cos, sin)
in_place = peak() - before
copy = query * 2
print(query.nbytes, in_place, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from Linux's /proc")
def test_the_process_does_not_grow_by_the_size_of_the_query():
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    size, grown_in_place, grown_by_a_copy = map(int, run.stdout.split())
    assert size == 2**26
    assert grown_in_place < size // 8
    assert grown_by_a_copy > size // 2


GUARDED = """
import ctypes
import itertools
import mmap
import torch
import rope_ext
from rope_ext import _C

libc = ctypes.CDLL(None)


def guarded_page():
    # Three pages, of which the outer two may be neither read nor written.
    memory = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, 2):
        assert libc.mprotect(
            ctypes.c_void_p(address + page * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 0
        ) == 0
    return torch.frombuffer(memory, dtype=torch.uint8)


data, cosines, sines = guarded_page(), guarded_page(), guarded_page()
dtypes = torch.float16, torch.bfloat16, torch.float32, torch.float64
for capability in _C.cpu_capabilities():
    _C.set_cpu_capability(capability)
    for dtype, interleaved, pairs in itertools.product(dtypes, (False, True), range(1, 71)):
        memory = data.view(dtype)
        page = len(memory) // 3
        rows = 5 if page > 5 * 2 * pairs else 1
        tables = []
        for table in (cosines, sines):
            floats = table.view(torch.float32)
            end = 2 * len(floats) // 3
            tables.append(floats[end - rows * pairs : end].view(rows, pairs))
        tables[0].fill_(0.0)
        tables[1].fill_(1.0)

        for start in (page, 2 * page - 2 * pairs):
            span = memory[start : start + 2 * pairs]
            span.fill_(1)
            rope_ext.apply_(
                memory.view(1, 1, -1), None, *tables, start=start, interleaved=interleaved
            )
            assert sorted(span.tolist()) == [-1] * pairs + [1] * pairs

        heads = page // (rows * 2 * pairs)
        count = rows * heads * 2 * pairs
        for start in (page, 2 * page - count):
            whole = memory[start : start + count]
            whole.fill_(1)
            rope_ext.apply_(
                whole.view(rows, heads, 2 * pairs), None, *tables, interleaved=interleaved
            )
            assert int((whole == 1).sum()) == count // 2
print("unharmed")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects memory with mprotect")
def test_memory_beside_tables_and_rotated_elements_is_never_touched():
    run = subprocess.run(
        [sys.executable, "-c", GUARDED], capture_output=True, text=True, check=False
    )
    assert run.stdout == "unharmed\n", run.stderr or f"killed by signal {-run.returncode}"

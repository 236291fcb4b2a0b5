"""Every call that is refused, one row each: the error, what it says, and that nothing changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from inputs import angle_tables, name, normal
from tolerance import assert_rotated, bits
from torch import Tensor

import rope_ext

pytestmark = pytest.mark.usefixtures("device")

ARGUMENTS = ("query", "key", "cos", "sin", "positions")
OPTIONS = ("seq_dim", "head_dim", "num_heads", "start", "interleaved", "inverse")


@dataclass(frozen=True)
class Refusal:
    """A call that differs from an accepted one in what ``change`` returns.

    The message names the subject, then the rule, then what was received. ``rotate`` refuses the
    same where ``functional``, and the meta device, which has no data to look at, where ``meta``.
    """

    name: str
    error: type[Exception]
    subject: str
    received: str
    change: Callable[[], dict[str, object]]
    functional: bool = True
    meta: bool = True

    @property
    def message(self) -> str:
        return self.message_about(self.subject)

    def message_about(self, subject: str) -> str:
        return rf"^{subject} (must|needs) .*\bgot {re.escape(self.received)}"


def accepted() -> dict[str, object]:
    """2 sequences of 5 tokens, 4 heads and 2 key heads of 16, tables of 7 rows for 8 pairs."""
    cos, sin = angle_tables(7, 8)
    return {
        "query": normal(2, 5, 4, 16, seed=3),
        "key": normal(2, 5, 2, 16, seed=4),
        "cos": cos,
        "sin": sin,
        "positions": None,
        "seq_dim": -3,
        "head_dim": None,
        "num_heads": None,
        "start": 0,
        "interleaved": False,
        "inverse": False,
    }


def tables(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return dict(zip(("cos", "sin"), angle_tables(*shape, dtype=dtype), strict=True))


def flat(**changes: object) -> dict[str, object]:
    return {"query": normal(2, 5, 64), "key": normal(2, 5, 32), "head_dim": 16, **changes}


def positions(*values: object, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    return {"positions": torch.tensor(values, dtype=dtype)}


def query_and_key(base: Tensor, query: object, key: object) -> dict[str, object]:
    """Two slices of one tensor."""
    return {"query": base[query], "key": base[key], **tables(base.shape[0], 4)}


def twins() -> dict[str, object]:
    query = normal(2, 5, 4, 16)
    return {"query": query, "key": query}


def table_inside_query() -> dict[str, object]:
    query = normal(2, 5, 4, 16)
    return {"query": query, "sin": query[0, :, 0, :8], "cos": normal(5, 8)}


def table_inside_key() -> dict[str, object]:
    key = normal(2, 5, 2, 16)
    return {"key": key, "cos": key[0, :, 0, :8], "sin": normal(5, 8)}


def positions_inside_query() -> dict[str, object]:
    memory = torch.zeros(2, 5, 4, 16)
    return {"query": memory, "positions": memory.view(torch.int32)[0, :, 0, 0]}


def seven_leading_dimensions() -> dict[str, object]:
    every_other = (slice(None, None, 2),) * 7
    return {"query": normal(*[4] * 7, 5, 4, 16)[every_other], "key": None}


TWICE = "the same element twice"
HALF, DOUBLE = torch.float16, torch.float64

REFUSALS = [
    Refusal(
        "integer query",
        TypeError,
        "query",
        "int32",
        lambda: {"query": torch.ones(2, 5, 4, 16, dtype=torch.int32), "key": None},
    ),
    Refusal(
        "boolean query",
        TypeError,
        "query",
        "bool",
        lambda: {"query": torch.ones(2, 5, 4, 16, dtype=torch.bool), "key": None},
    ),
    Refusal(
        "complex query",
        TypeError,
        "query",
        "complex64",
        lambda: {"query": torch.ones(2, 5, 4, 16, dtype=torch.complex64), "key": None},
    ),
    Refusal(
        "float8 query",
        TypeError,
        "query",
        "float8_e4m3fn",
        lambda: {"query": torch.ones(2, 5, 4, 16).to(torch.float8_e4m3fn), "key": None},
    ),
    Refusal(
        "key of another dtype",
        TypeError,
        "key",
        "float64",
        lambda: {"key": normal(2, 5, 2, 16, dtype=DOUBLE)},
        functional=False,
    ),
    Refusal(
        "float16 tables for a float32 query",
        TypeError,
        "cos",
        "float16",
        lambda: tables(7, 8, dtype=HALF),
    ),
    Refusal(
        "bfloat16 tables for a float16 query",
        TypeError,
        "cos",
        "bfloat16",
        lambda: {
            "query": normal(2, 5, 4, 16, dtype=HALF),
            "key": None,
            **tables(7, 8, dtype=torch.bfloat16),
        },
    ),
    Refusal(
        "integer tables",
        TypeError,
        "cos",
        "int64",
        lambda: {
            "cos": torch.ones(7, 8, dtype=torch.int64),
            "sin": torch.ones(7, 8, dtype=torch.int64),
        },
    ),
    Refusal(
        "complex tables",
        TypeError,
        "cos",
        "complex64",
        lambda: {
            "cos": torch.ones(7, 8, dtype=torch.complex64),
            "sin": torch.ones(7, 8, dtype=torch.complex64),
        },
    ),
    Refusal(
        "sin of another dtype than cos",
        TypeError,
        "sin",
        "float64",
        lambda: {"sin": normal(7, 8, dtype=DOUBLE)},
    ),
    Refusal(
        "floating positions",
        TypeError,
        "positions",
        "float32",
        lambda: positions(0, 1, 2, 3, 4, dtype=torch.float32),
    ),
    Refusal(
        "int16 positions",
        TypeError,
        "positions",
        "int16",
        lambda: positions(0, 1, 2, 3, 4, dtype=torch.int16),
    ),
    Refusal(
        "boolean positions",
        TypeError,
        "positions",
        "bool",
        lambda: positions(0, 1, 1, 0, 1, dtype=torch.bool),
    ),
    Refusal(
        "query of two dimensions",
        ValueError,
        "query",
        "2",
        lambda: {"query": normal(5, 16), "key": None},
    ),
    Refusal(
        "query without dimensions",
        ValueError,
        "query",
        "0",
        lambda: {"query": torch.tensor(1.0), "key": None},
    ),
    Refusal(
        "flat query of one dimension",
        ValueError,
        "query",
        "1",
        lambda: {"query": normal(64), "key": None, "head_dim": 16},
    ),
    Refusal("tokens in the last dimension", ValueError, "seq_dim", "-1", lambda: {"seq_dim": -1}),
    Refusal("tokens fourth from last", ValueError, "seq_dim", "-4", lambda: {"seq_dim": -4}),
    Refusal("tokens counted from the front", ValueError, "seq_dim", "1", lambda: {"seq_dim": 1}),
    Refusal(
        "head_dim with heads before tokens",
        ValueError,
        "head_dim",
        "seq_dim=-2",
        lambda: flat(seq_dim=-2),
    ),
    Refusal("head_dim that does not divide", ValueError, "query", "64", lambda: flat(head_dim=24)),
    Refusal(
        "head_dim that does not divide the key",
        ValueError,
        "key",
        "24",
        lambda: flat(key=normal(2, 5, 24)),
        functional=False,
    ),
    Refusal("zero head_dim", ValueError, "head_dim", "0", lambda: flat(head_dim=0)),
    Refusal("negative head_dim", ValueError, "head_dim", "-16", lambda: flat(head_dim=-16)),
    Refusal("more heads than there are", ValueError, "num_heads", "5", lambda: {"num_heads": 5}),
    Refusal(
        "more heads than a flat query has", ValueError, "num_heads", "5", lambda: flat(num_heads=5)
    ),
    Refusal("negative num_heads", ValueError, "num_heads", "-1", lambda: {"num_heads": -1}),
    Refusal("more pairs than fit", ValueError, "cos", "9", lambda: tables(7, 9)),
    Refusal("negative start", ValueError, "start", "-1", lambda: {"start": -1, **tables(7, 4)}),
    Refusal("start that pushes a pair out", ValueError, "cos", "8", lambda: {"start": 1}),
    Refusal(
        "start far beyond the head",
        ValueError,
        "start",
        "4611686018427387904",
        lambda: {"start": 2**62, **tables(7, 4)},
    ),
    Refusal(
        "start at the end of the int64 range",
        ValueError,
        "start",
        "9223372036854775807",
        lambda: {"start": 2**63 - 1, **tables(7, 4)},
    ),
    Refusal(
        "start that pushes a flat pair into the next head",
        ValueError,
        "cos",
        "4",
        lambda: flat(start=9, **tables(7, 4)),
    ),
    Refusal(
        "key of another batch",
        ValueError,
        "key",
        "3",
        lambda: {"key": normal(3, 5, 2, 16)},
        functional=False,
    ),
    Refusal(
        "key of another number of tokens",
        ValueError,
        "key",
        "6",
        lambda: {"key": normal(2, 6, 2, 16)},
        functional=False,
    ),
    Refusal(
        "key of another head dimension",
        ValueError,
        "key",
        "24",
        lambda: {"key": normal(2, 5, 2, 24)},
        functional=False,
    ),
    Refusal(
        "key of another rank",
        ValueError,
        "key",
        "3",
        lambda: {"key": normal(5, 2, 16)},
        functional=False,
    ),
    Refusal(
        "key of another number of heads than tables per head",
        ValueError,
        "key",
        "2",
        lambda: tables(5, 4, 8) | {"cos": normal(2, 5, 4, 8), "sin": normal(2, 5, 4, 8)},
        functional=False,
    ),
    Refusal("fewer rows than tokens", ValueError, "cos", "4", lambda: tables(4, 8)),
    Refusal(
        "sin with other rows than cos", ValueError, "sin", "[6, 8]", lambda: {"sin": normal(6, 8)}
    ),
    Refusal(
        "sin with other columns than cos",
        ValueError,
        "sin",
        "[7, 4]",
        lambda: {"sin": normal(7, 4)},
    ),
    Refusal(
        "sin of another rank than cos",
        ValueError,
        "sin",
        "[1, 7, 8]",
        lambda: {"sin": normal(1, 7, 8)},
    ),
    Refusal("table of one dimension", ValueError, "cos", "1", lambda: tables(8)),
    Refusal("table without dimensions", ValueError, "cos", "0", lambda: tables()),
    Refusal(
        "table of more dimensions than the query",
        ValueError,
        "cos",
        "5",
        lambda: tables(1, 2, 5, 4, 8),
    ),
    Refusal(
        "tables per batch with more rows than tokens",
        ValueError,
        "cos",
        "7",
        lambda: tables(2, 7, 8),
    ),
    Refusal("tables per batch with one row", ValueError, "cos", "1", lambda: tables(2, 1, 8)),
    Refusal(
        "tables for another batch",
        ValueError,
        "cos",
        "3 in shape [3, 5, 8]",
        lambda: tables(3, 5, 8),
    ),
    Refusal(
        "tables per head for another number of heads",
        ValueError,
        "cos",
        "3",
        lambda: {"key": None, **tables(2, 5, 3, 8)},
    ),
    Refusal(
        "tables per head for another batch",
        ValueError,
        "cos",
        "3 in shape [3, 5, 4, 8]",
        lambda: {"key": None, **tables(3, 5, 4, 8)},
    ),
    Refusal(
        "tables per head for other tokens",
        ValueError,
        "cos",
        "7",
        lambda: {"key": None, **tables(2, 7, 4, 8)},
    ),
    Refusal(
        "tables per head for all heads where some rotate",
        ValueError,
        "cos",
        "4",
        lambda: {"key": None, "num_heads": 3, **tables(2, 5, 4, 8)},
    ),
    Refusal(
        "tables per head with tokens and heads in the other order",
        ValueError,
        "cos",
        "4",
        lambda: {"key": None, **tables(2, 4, 5, 8)},
    ),
    Refusal(
        "tables per head of another rank than a flat query calls for",
        ValueError,
        "cos",
        "5",
        lambda: flat(key=None, **tables(2, 1, 5, 4, 8)),
    ),
    Refusal(
        "positions with tables per batch",
        ValueError,
        "cos",
        "3",
        lambda: {**tables(2, 5, 8), **positions(0, 1, 2, 3, 4)},
    ),
    Refusal(
        "positions with tables per head",
        ValueError,
        "cos",
        "4",
        lambda: {"key": None, **tables(2, 5, 4, 8), **positions(0, 1, 2, 3, 4)},
    ),
    Refusal(
        "fewer positions than tokens", ValueError, "positions", "4", lambda: positions(0, 1, 2, 3)
    ),
    Refusal(
        "more positions than tokens",
        ValueError,
        "positions",
        "6",
        lambda: positions(0, 1, 2, 3, 4, 5),
    ),
    Refusal("one position for all tokens", ValueError, "positions", "1", lambda: positions(3)),
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
        lambda: {"positions": torch.zeros(3, 5, dtype=torch.int64)},
    ),
    Refusal(
        "positions of more dimensions than tokens have",
        ValueError,
        "positions",
        "3",
        lambda: {"positions": torch.zeros(1, 2, 5, dtype=torch.int64)},
    ),
    Refusal(
        "positions per head",
        ValueError,
        "positions",
        "3",
        lambda: {"positions": torch.zeros(2, 5, 4, dtype=torch.int64)},
    ),
    Refusal(
        "a negative position",
        IndexError,
        "positions",
        "-1",
        lambda: positions(0, 1, 2, 3, -1),
        meta=False,
    ),
    Refusal(
        "a position beyond the last row",
        IndexError,
        "positions",
        "7",
        lambda: positions(0, 1, 2, 3, 7),
        meta=False,
    ),
    Refusal(
        "an int32 position beyond the last row",
        IndexError,
        "positions",
        "7",
        lambda: positions(7, 1, 2, 3, 0, dtype=torch.int32),
        meta=False,
    ),
    Refusal(
        "a position beyond 32 bits",
        IndexError,
        "positions",
        "4294967296",
        lambda: positions(0, 1, 2**32, 3, 4),
        meta=False,
    ),
    Refusal(
        "the lowest position",
        IndexError,
        "positions",
        "-9223372036854775808",
        lambda: positions(0, -(2**63), 2, 3, 4),
        meta=False,
    ),
    Refusal(
        "a wrong position in the last sequence",
        IndexError,
        "positions",
        "9",
        lambda: {"positions": torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 9]])},
        meta=False,
    ),
    Refusal(
        "a position and no row",
        IndexError,
        "positions",
        "0",
        lambda: {**tables(0, 8), **positions(0, 0, 0, 0, 0)},
        meta=False,
    ),
    Refusal(
        "seven leading dimensions that no stride joins",
        ValueError,
        "query",
        "more in shape [2, 2, 2, 2, 2, 2, 2]",
        seven_leading_dimensions,
        meta=False,
    ),
    Refusal(
        "expanded query",
        ValueError,
        "query",
        TWICE,
        lambda: {"query": normal(1, 5, 4, 16).expand(2, 5, 4, 16), "key": None},
        functional=False,
        meta=False,
    ),
    Refusal(
        "expanded key",
        ValueError,
        "key",
        TWICE,
        lambda: {"key": normal(2, 5, 1, 16).expand(2, 5, 2, 16)},
        functional=False,
        meta=False,
    ),
    Refusal(
        "query of overlapping windows",
        ValueError,
        "query",
        TWICE,
        lambda: {
            "query": normal(2 * 5 * 4 * 16).as_strided((2, 5, 4, 16), (320, 8, 40, 1)),
            "key": None,
        },
        functional=False,
        meta=False,
    ),
    Refusal("query that is the key", ValueError, "key", TWICE, twins, functional=False, meta=False),
    Refusal(
        "key one token later",
        ValueError,
        "key",
        TWICE,
        lambda: query_and_key(normal(6, 2, 8), slice(0, 5), slice(1, 6)),
        functional=False,
        meta=False,
    ),
    Refusal(
        "key one element later",
        ValueError,
        "key",
        TWICE,
        lambda: query_and_key(normal(5, 2, 17), (..., slice(0, 16)), (..., slice(1, 17))),
        functional=False,
        meta=False,
    ),
    Refusal(
        "every second and every third element",
        ValueError,
        "key",
        TWICE,
        lambda: query_and_key(normal(5, 2, 48), (..., slice(0, 32, 2)), (..., slice(0, 48, 3))),
        functional=False,
        meta=False,
    ),
    Refusal(
        "table inside the query",
        ValueError,
        "sin",
        TWICE,
        table_inside_query,
        functional=False,
        meta=False,
    ),
    Refusal(
        "table inside the key",
        ValueError,
        "cos",
        TWICE,
        table_inside_key,
        functional=False,
        meta=False,
    ),
    Refusal(
        "positions inside the query",
        ValueError,
        "positions",
        TWICE,
        positions_inside_query,
        functional=False,
        meta=False,
    ),
    Refusal(
        "key on another device",
        ValueError,
        "key",
        "meta",
        lambda: {"key": normal(2, 5, 2, 16).to("meta")},
        functional=False,
        meta=False,
    ),
    Refusal(
        "tables on another device",
        ValueError,
        "cos",
        "meta",
        lambda: {k: t.to("meta") for k, t in tables(7, 8).items()},
        meta=False,
    ),
    Refusal(
        "sin on another device",
        ValueError,
        "sin",
        "meta",
        lambda: {"sin": normal(7, 8).to("meta")},
        meta=False,
    ),
    Refusal(
        "positions on another device",
        ValueError,
        "positions",
        "meta",
        lambda: {"positions": torch.zeros(5, dtype=torch.int64, device="meta")},
        meta=False,
    ),
]


def snapshot(tensors: Iterable[object]) -> list[tuple[Tensor, int]]:
    """Every byte of the memory under the tensors, and their versions."""
    return [
        (
            torch.empty(0, dtype=torch.uint8, device=tensor.device)
            .set_(tensor.untyped_storage())
            .clone(),
            tensor._version,
        )
        for tensor in tensors
        if isinstance(tensor, Tensor) and tensor.device.type != "meta"
    ]


def assert_nothing_changed(tensors: Iterable[object], before: list[tuple[Tensor, int]]) -> None:
    for (memory, version), (old_memory, old_version) in zip(snapshot(tensors), before, strict=True):
        assert torch.equal(memory, old_memory)
        assert version == old_version


def refused(refusal: Refusal) -> tuple[dict[str, object], list[object]]:
    """The refused call as keywords of ``apply_``, and the options in the operator's order."""
    if refusal.error is IndexError and torch.get_default_device().type == "cuda":
        pytest.skip("a GPU refuses a position by an assertion, and no call after it returns")
    call = accepted() | refusal.change()
    return call, [call[option] for option in OPTIONS]


def test_the_call_that_every_row_starts_from_is_accepted():
    call = accepted()
    query, key = call["query"].clone(), call["key"].clone()
    rope_ext.apply_(**call)
    assert_rotated(call["query"], query, call["cos"], call["sin"])
    assert_rotated(call["key"], key, call["cos"], call["sin"])


@pytest.mark.parametrize("refusal", REFUSALS, ids=name)
def test_apply_refuses_and_changes_nothing(refusal: Refusal):
    call, options = refused(refusal)
    arguments = [call[argument] for argument in ARGUMENTS]
    before = snapshot(arguments)
    with pytest.raises(refusal.error, match=refusal.message):
        rope_ext.apply_(**call)
    assert_nothing_changed(arguments, before)
    with pytest.raises(refusal.error, match=refusal.message):
        torch.ops.rope.apply(*arguments, *options)
    assert_nothing_changed(arguments, before)


@pytest.mark.parametrize("refusal", [r for r in REFUSALS if r.functional], ids=name)
def test_rotate_refuses(refusal: Refusal):
    call, options = refused(refusal)
    arguments = [call[argument] for argument in ARGUMENTS if argument != "key"]
    message = refusal.message_about("x" if refusal.subject == "query" else refusal.subject)
    with pytest.raises(refusal.error, match=message):
        torch.ops.rope.rotate(*arguments, *options)
    with pytest.raises(refusal.error, match=message):
        rope_ext.rotate(*arguments, **{option: call[option] for option in OPTIONS})


@pytest.mark.parametrize("refusal", [r for r in REFUSALS if r.meta], ids=name)
def test_apply_refuses_the_same_on_the_meta_device(refusal: Refusal):
    call, options = refused(refusal)
    arguments = [call[argument] for argument in ARGUMENTS]
    on_meta = [tensor if tensor is None else tensor.to("meta") for tensor in arguments]
    with pytest.raises(refusal.error, match=refusal.message):
        torch.ops.rope.apply(*on_meta, *options)


def test_a_leaf_that_requires_grad_is_refused_before_it_changes():
    call = accepted()
    call["query"].requires_grad_()
    tensors = call["query"], call["key"]
    before = snapshot(tensors)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        rope_ext.apply_(**call)
    assert_nothing_changed(tensors, before)


def test_a_leaf_key_is_refused_before_the_query_changes():
    call = accepted()
    call["key"].requires_grad_()
    tensors = call["query"], call["key"]
    before = snapshot(tensors)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        rope_ext.apply_(**call)
    assert_nothing_changed(tensors, before)
    assert not call["query"].requires_grad


def test_a_leaf_without_grad_mode_is_accepted():
    call = accepted()
    query = call["query"].clone()
    call["query"].requires_grad_()
    with torch.no_grad():
        rope_ext.apply_(**call)
    assert_rotated(call["query"].detach(), query, call["cos"], call["sin"])


def test_a_view_of_a_leaf_is_refused_before_it_changes():
    call = accepted()
    leaf = normal(2, 5, 64).requires_grad_()
    call["query"] = leaf.view(2, 5, 4, 16)
    before = snapshot([leaf])
    with pytest.raises(RuntimeError, match="a view of a leaf Variable that requires grad"):
        rope_ext.apply_(**call)
    assert_nothing_changed([leaf], before)


@pytest.mark.parametrize(
    "several_views",
    [
        lambda x: x.chunk(2, dim=-1)[0],
        lambda x: x.split(64, dim=-1)[0],
        lambda x: x.view(2, 5, 2, 64).unbind(2)[0],
    ],
    ids=["chunk", "split", "unbind"],
)
def test_one_of_several_views_under_grad_is_refused_before_it_changes(several_views):
    packed = normal(2, 5, 128).requires_grad_().clone()
    query = several_views(packed)
    cos, sin = angle_tables(5, 8)
    before = snapshot([packed])
    with pytest.raises(RuntimeError, match=r"view.*inplace|inplace.*view"):
        rope_ext.apply_(query, None, cos, sin, head_dim=16)
    assert_nothing_changed([packed], before)


def test_an_inference_tensor_is_refused_outside_inference_mode():
    with torch.inference_mode():
        query = normal(2, 5, 4, 16)
    before = query.clone()
    cos, sin = angle_tables(5, 8)
    with pytest.raises(RuntimeError, match=r"^query and key must not be inference tensors"):
        rope_ext.apply_(query, None, cos, sin)
    assert torch.equal(bits(query), bits(before))


def test_an_inference_key_is_refused_before_the_query_changes():
    call = accepted()
    with torch.inference_mode():
        call["key"] = normal(2, 5, 2, 16)
    key = call["key"].clone()
    before = snapshot([call["query"]])
    with pytest.raises(RuntimeError, match=r"^query and key must not be inference tensors"):
        rope_ext.apply_(**call)
    assert_nothing_changed([call["query"]], before)
    assert torch.equal(bits(call["key"]), bits(key))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
@pytest.mark.parametrize("table", ["cos", "sin"])
def test_tables_with_a_tangent_are_refused_before_anything_changes(table: str):
    call = accepted()
    tensors = call["query"], call["key"]
    before = snapshot(tensors)
    with forward_ad.dual_level():
        call[table] = forward_ad.make_dual(call[table], torch.ones_like(call[table]))
        message = f"^{table} must not have a tangent: forward derivatives with respect to angles"
        with pytest.raises(RuntimeError, match=message):
            rope_ext.apply_(**call)
        with pytest.raises(RuntimeError, match=message):
            rope_ext.rotate(call["query"], call["cos"], call["sin"])
    assert_nothing_changed(tensors, before)


def test_tables_that_require_grad_are_accepted_without_grad_mode():
    call = accepted()
    call["cos"].requires_grad_()
    with torch.no_grad():
        expected = rope_ext.rotate(call["query"], call["cos"].detach(), call["sin"])
        actual = rope_ext.rotate(call["query"], call["cos"], call["sin"])
    assert torch.equal(bits(actual), bits(expected))


@pytest.mark.parametrize(
    ("subject", "change"),
    [
        ("cos", lambda: {"query": torch.empty(0, 5, 4, 16), **tables(7, 9)}),
        ("cos", lambda: {"query": torch.empty(2, 5, 0, 16), **tables(4, 8)}),
        ("start", lambda: {"query": torch.empty(2, 0, 4, 16), "start": -1}),
        ("seq_dim", lambda: {"query": torch.empty(2, 0, 4, 16), "seq_dim": 1}),
        ("positions", lambda: {"query": torch.empty(0, 5, 4, 16), **positions(0, 1)}),
    ],
    ids=["columns", "rows", "start", "seq_dim", "positions"],
)
def test_empty_tensors_do_not_hide_a_wrong_argument(subject: str, change: Callable[[], dict]):
    with pytest.raises(ValueError, match=f"^{subject} must"):
        rope_ext.apply_(**accepted() | {"key": None} | change())


def test_empty_tensors_may_have_any_number_of_leading_dimensions():
    cos, sin = angle_tables(3, 2)
    query = torch.empty(0, *[2] * 9, 3, 1, 4).permute(*range(9, -1, -1), 10, 11, 12)
    torch.ops.rope.apply(query, None, cos, sin)
    assert torch.ops.rope.rotate(query, cos, sin).shape == query.shape

"""Shapes without data: the meta device, and fake tensors with known and with symbolic sizes."""

from __future__ import annotations

import pytest
import torch
from inputs import DTYPES, FORMS, Angles, Layout, angle_tables, name, normal, strided
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rope_ext


@pytest.mark.parametrize(("layout", "angles"), FORMS)
def test_every_form_is_accepted_on_the_meta_device(layout: Layout, angles: Angles):
    cos, sin, positions = angles(layout, 5, 3, 8, torch.float32)
    query = torch.empty(layout.shape(5, 3, 16), device="meta")
    key = torch.empty_like(query)
    tables = [None if t is None else t.to("meta") for t in (cos, sin, positions)]
    assert torch.ops.rope.apply(query, key, *tables, **layout.options(16)) is None
    y = rope_ext.rotate(query, *tables, **layout.options(16))
    assert y.device.type == "meta"
    assert y.shape == query.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    "strides",
    [{}, {"order": (0, 2, 1, 3)}, {"order": (3, 1, 0, 2)}, {"steps": (1, 2, 1, 2)}],
    ids=["contiguous", "heads before tokens", "elements outermost", "slice"],
)
def test_the_result_on_meta_is_laid_out_as_the_real_one(strides: dict, dtype: torch.dtype):
    x, _ = strided(normal(2, 5, 4, 16, dtype=dtype), **strides)
    cos, sin = angle_tables(5, 8)
    real = rope_ext.rotate(x, cos, sin)
    x_meta = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta")
    on_meta = rope_ext.rotate(x_meta, cos.to("meta"), sin.to("meta"))
    assert on_meta.dtype == real.dtype
    assert on_meta.shape == real.shape
    assert on_meta.stride() == real.stride()


def test_fake_tensors_rotate():
    with FakeTensorMode():
        query, key = torch.empty(2, 5, 4, 16), torch.empty(2, 5, 2, 16)
        cos, sin = torch.empty(5, 8), torch.empty(5, 8)
        assert rope_ext.apply_(query, key, cos, sin) == (query, key)
        assert rope_ext.rotate(query, cos, sin).shape == (2, 5, 4, 16)
        with pytest.raises(ValueError, match=r"^cos must"):
            rope_ext.rotate(query, cos[:4], sin[:4])


def test_symbolic_sizes_stay_symbolic():
    def rotated(x, cos, sin, positions):
        return rope_ext.rotate(x, cos, sin, positions)

    arguments = normal(2, 5, 4, 16), *angle_tables(7, 8), torch.arange(5)
    graph = make_fx(rotated, tracing_mode="symbolic")(*arguments)
    (call,) = (node for node in graph.graph.nodes if node.op == "call_function")
    assert call.target == torch.ops.rope.rotate.default
    batch, tokens, *_ = call.meta["val"].shape
    assert isinstance(batch, torch.SymInt)
    assert isinstance(tokens, torch.SymInt)

    larger = normal(3, 9, 4, 16), *angle_tables(30, 8), torch.arange(9)
    assert torch.equal(graph(*larger), rotated(*larger))

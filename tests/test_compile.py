"""What torch.compile and torch.export make of the operators and of the module."""

from __future__ import annotations

import pytest
import torch
from inputs import angle_tables, normal
from tolerance import assert_same_bits
from torch import Tensor, nn

import rope_ext

pytestmark = [
    pytest.mark.usefixtures("device"),
    pytest.mark.real_cuda("the compiler does not trace under a dispatch mode"),
]

BACKENDS = ["eager", "aot_eager"]


class Attention(nn.Module):
    """Queries and keys are views of one projection."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.projection = nn.Linear(32, 3 * 32)
        self.rotary = rope_ext.RotaryEmbedding(8, **options)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.projection(x).unflatten(-1, (3, 4, 8)).unbind(-3)
        query, key = self.rotary(query, key)
        query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
        return nn.functional.scaled_dot_product_attention(query, key, value)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inplace", [True, False])
def test_a_module_trains_in_one_graph(inplace: bool, backend: str):
    torch.manual_seed(0)
    attention = Attention(inplace=inplace)
    compiled = torch.compile(attention, fullgraph=True, backend=backend)
    for tokens in (5, 7, 9):
        x = normal(2, tokens, 32)
        results, gradients = [], []
        for forward in (attention, compiled):
            attention.zero_grad()
            result = forward(x)
            result.square().sum().backward()
            results.append(result.detach())
            gradients.append(attention.projection.weight.grad.clone())
        assert_same_bits(*results)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_module_infers_in_one_graph(backend: str):
    attention = Attention()
    compiled = torch.compile(attention, fullgraph=True, backend=backend)
    x = normal(2, 5, 32)
    with torch.no_grad():
        assert_same_bits(compiled(x), attention(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_compile_in_one_graph(backend: str):
    tables = angle_tables(5, 4)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        query, key = rope_ext.apply_(x * 1, x[..., :1, :] * 2, *tables)
        return query + rope_ext.rotate(x, *tables, interleaved=True), key

    compiled = torch.compile(both, fullgraph=True, backend=backend)
    x = normal(2, 5, 4, 8)
    for ours, eager in zip(compiled(x), both(x), strict=True):
        assert_same_bits(ours, eager)


def test_a_module_is_exported_with_any_number_of_tokens():
    attention = Attention().eval()
    tokens = torch.export.Dim("tokens", min=2, max=1024)
    exported = torch.export.export(
        attention, (normal(2, 5, 32),), dynamic_shapes={"x": {1: tokens}}
    )
    x = normal(2, 11, 32)
    with torch.no_grad():
        assert_same_bits(exported.module()(x), attention(x))

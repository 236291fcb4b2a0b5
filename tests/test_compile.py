"""What torch.compile and torch.export make of the operators and of the module."""

from __future__ import annotations

import pytest
import torch
from inputs import angle_tables, normal
from tolerance import assert_same_bits
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import rope_ext
from rope_ext.positions import normalised
from rope_ext.scaling import DynamicNTK, LongRoPE, YaRN

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


LONG = LongRoPE((1.0,) * 4, (3.0,) * 4, original_context_length=8, factor=4.0)
MODULES = {
    "RotaryEmbedding": lambda: rope_ext.RotaryEmbedding(8),
    "YaRN": lambda: rope_ext.RotaryEmbedding(8, scaling=YaRN(4.0, 64)),
    "DynamicNTK": lambda: rope_ext.RotaryEmbedding(8, scaling=DynamicNTK(2.0, 8)),
    "LongRoPE": lambda: rope_ext.RotaryEmbedding(8, scaling=LONG),
    "learnable": lambda: rope_ext.RotaryEmbedding(8, learnable=True),
    "AxialRotaryEmbedding": lambda: rope_ext.AxialRotaryEmbedding(8),
    "MRotaryEmbedding": lambda: rope_ext.MRotaryEmbedding(8, (1, 2, 1)),
    "MixedRotaryEmbedding": lambda: rope_ext.MixedRotaryEmbedding(8, 4),
    "XPosRotaryEmbedding": lambda: rope_ext.XPosRotaryEmbedding(8),
}
every_module = pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)


class Fresh(nn.Module):
    """Rotates what nobody else holds."""

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.rope(query * 1, key * 2, positions)


def positions_for(module: nn.Module, tokens: int, floating: bool) -> Tensor:
    axes = getattr(module, "axes", None)
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, tokens) if axes is None else (2, tokens, axes)
    positions = torch.randint(-20, 40, shape, generator=generator)
    return positions + 0.25 if floating else positions


@every_module
@pytest.mark.parametrize("floating", [False, True], ids=["whole", "floating"])
@pytest.mark.parametrize("grad", [False, True])
def test_one_graph_serves_any_number_of_tokens_and_any_positions(build, grad: bool, floating: bool):
    module = Fresh(build())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for tokens in (5, 8, 9, 33):
        query, key = (normal(2, tokens, 4, 8, seed=s).requires_grad_(grad) for s in (0, 1))
        positions = positions_for(module.rope, tokens, floating)
        for tensor in (query, key, positions):
            torch._dynamo.mark_dynamic(tensor, 1)
        with torch.set_grad_enabled(grad):
            results = [forward(query, key, positions) for forward in (module, compiled)]
        for eager, ours in zip(*results, strict=True):
            assert_same_bits(ours.detach(), eager.detach())
        if grad:
            gradients = (torch.autograd.grad((q + k).sum(), (query, key)) for q, k in results)
            torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


@pytest.mark.parametrize("rule", [DynamicNTK(2.0, 8), LONG], ids=["DynamicNTK", "LongRoPE"])
def test_one_graph_serves_lengths_on_both_sides_of_a_threshold(rule):
    module = rope_ext.RotaryEmbedding(8, scaling=rule)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for tokens in (5, 8, 9, 33):
        x = normal(2, tokens, 4, 8)
        given = x.clone()
        torch._dynamo.mark_dynamic(given, 1)
        with torch.no_grad():
            # The factor is a number here and a tensor there: one float64 rounding more.
            torch.testing.assert_close(compiled(given), module(x), rtol=0, atol=2**-20)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_and_packed_projections_compile_in_one_graph(backend: str):
    module = rope_ext.RotaryEmbedding(8, scaling=LONG)
    packed = normal(2, 5, 6 * 8)
    lengths = torch.tensor([3, 100])
    forward = torch.compile(
        lambda qkv: module.forward_packed(qkv * 1, 2, 2, length=lengths),
        fullgraph=True,
        backend=backend,
    )
    with torch.no_grad():
        expected = module.forward_packed(packed.clone(), 2, 2, length=lengths)
        assert_same_bits(forward(packed), expected)


def test_a_grid_compiles_in_one_graph():
    rope = rope_ext.AxialRotaryEmbedding(8, coordinates=normalised, prefix_tokens=1).eval()
    forward = torch.compile(
        lambda x: rope(x * 1, None, (2, 3)), fullgraph=True, backend="aot_eager"
    )
    x = normal(7, 2, 8)
    assert_same_bits(forward(x), rope(x.clone(), None, (2, 3)))


@every_module
@pytest.mark.parametrize("inplace", [True, False])
def test_every_module_is_exported_with_any_number_of_tokens(build, inplace: bool):
    module = Fresh(build()).requires_grad_(False)
    module.rope.inplace = inplace
    tokens = torch.export.Dim("tokens", min=2, max=1024)
    inputs = normal(2, 5, 4, 8), normal(2, 5, 4, 8), positions_for(module.rope, 5, False)
    exported = torch.export.export(module, inputs, dynamic_shapes=({1: tokens},) * 3)
    inputs = normal(2, 11, 4, 8), normal(2, 11, 4, 8), positions_for(module.rope, 11, False)
    for ours, eager in zip(exported.module()(*inputs), module(*inputs), strict=True):
        assert_same_bits(ours, eager)

"""Train a small attention model on text, once with rope_ext and once with plain PyTorch.

Both runs start from the same seed and see the same bytes of Python's own language reference, so
that their losses can differ by rounding alone. Training makes a rounding grow from step to step:
float64, whose roundings are 2**29 times smaller than those of float32, tells it from an error.

    python examples/train_attention.py
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import sys

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from rope_ext import RotaryEmbedding

TEXT = "\n".join(pydoc_data.topics.topics.values()).encode()
TOKENS, BATCH, WIDTH, HEADS, LAYERS = 128, 4, 96, 3, 2

# In float64. Roundings stay below 1e-14 for 600 steps; a base of 10001, not 10000, shows at 1e-7.
LARGEST_DIFFERENCE = 1e-10

Curves = dict[tuple[type[nn.Module], torch.dtype], Tensor]


class PlainRotary(nn.Module):
    """The rotation of RoFormer, Su et al. 2021, in plain PyTorch: the reference."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(TOKENS, dtype=torch.float64), frequencies)
        self.register_buffer("cos", angles.cos().unsqueeze(1))
        self.register_buffer("sin", angles.sin().unsqueeze(1))

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.rotate(query), self.rotate(key)

    def rotate(self, heads: Tensor) -> Tensor:
        x, y = heads.chunk(2, dim=-1)
        return torch.cat((x * self.cos - y * self.sin, x * self.sin + y * self.cos), dim=-1)


class Attention(nn.Module):
    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.projection = nn.Linear(WIDTH, 3 * WIDTH)
        self.rotary = rotary
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.projection(x).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = heads.unbind(-3)
        query, key = self.rotary(query, key)
        query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
        heads = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(heads.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention(rotary))
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


def train(rotary: type[nn.Module], dtype: torch.dtype, steps: int) -> Tensor:
    """Train a model from the same seed as every other, and return its loss at each step."""
    torch.manual_seed(0)
    blocks = [Block(rotary(WIDTH // HEADS)) for _ in range(LAYERS)]
    ends = nn.Embedding(256, WIDTH), nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))
    model = nn.Sequential(ends[0], *blocks, ends[1]).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    text = torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()
    losses = []
    for _ in track(range(steps), description=f"{rotary.__name__}, {dtype}"):
        starts = torch.randint(len(text) - TOKENS, (BATCH, 1))
        sample = text[starts + torch.arange(TOKENS + 1)]
        logits = model(sample[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), sample[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def largest_difference(curves: Curves, dtype: torch.dtype) -> float:
    return (curves[RotaryEmbedding, dtype] - curves[PlainRotary, dtype]).abs().max().item()


def loss_table(curves: Curves, steps: int) -> Table:
    table = Table("step", "plain PyTorch", "rope_ext", "difference", "in float64", title="Loss")
    for step in sorted({0, *range(49, steps, 50), steps - 1}):
        plain, ours, plain64, ours64 = (curve[step].item() for curve in curves.values())
        differences = abs(ours - plain), abs(ours64 - plain64)
        table.add_row(
            str(step + 1),
            f"{plain:.6f}",
            f"{ours:.6f}",
            *(f"{difference:.1e}" for difference in differences),
        )
    return table


def sparkline(losses: Tensor, columns: int = 60) -> str:
    """Draw a curve with one block character per column, the highest loss full."""
    means = torch.stack([chunk.mean() for chunk in losses.chunk(columns)])
    heights = (means - means.min()) / (means.max() - means.min()).clamp(min=1e-9) * 7
    return "".join("▁▂▃▄▅▆▇█"[height] for height in heights.round().int())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="steps of each run (%(default)s)")
    steps = parser.parse_args().steps
    if steps < 1:
        parser.error(f"--steps must be positive, got {steps}")
    torch.set_num_threads(1)  # tensors this small lose more to waiting than they gain

    curves = {
        (rotary, dtype): train(rotary, dtype, steps)
        for dtype in (torch.float32, torch.float64)
        for rotary in (PlainRotary, RotaryEmbedding)
    }

    console = Console(highlight=False)
    console.print(loss_table(curves, steps))
    for rotary in (PlainRotary, RotaryEmbedding):
        console.print(f"{rotary.__name__:>15} {sparkline(curves[rotary, torch.float32])}")
    float32, float64 = (
        largest_difference(curves, dtype) for dtype in (torch.float32, torch.float64)
    )
    coincide = float64 <= LARGEST_DIFFERENCE
    console.print(f"\nLargest difference: {float32:.1e} in float32, {float64:.1e} in float64.")
    console.print(f"The curves {'coincide' if coincide else 'do NOT coincide'}.")
    return 0 if coincide else 1


if __name__ == "__main__":
    sys.exit(main())

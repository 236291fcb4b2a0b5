"""The workloads that are measured."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rope_ext import frequencies

# A decode step far into a text: at position 0 a rotation would turn nothing.
FIRST_POSITION = 1000


@dataclass(frozen=True)
class Case:
    """Query and key of one call: sizes, layout, and the dtypes that are measured by default."""

    name: str
    batch: int
    tokens: int
    query_heads: int
    key_heads: int
    head_dim: int
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    heads_first: bool = False

    @property
    def seq_dim(self) -> int:
        return -2 if self.heads_first else -3

    @property
    def layout(self) -> str:
        return "BHSD" if self.heads_first else "BSHD"

    @property
    def call_bound(self) -> bool:
        """Whether dispatch and checks, not memory, decide the time."""
        return self.batch * self.tokens == 1

    def shape(self, heads: int) -> tuple[int, int, int, int]:
        if self.heads_first:
            return (self.batch, heads, self.tokens, self.head_dim)
        return (self.batch, self.tokens, heads, self.head_dim)

    def bytes(self, dtype: torch.dtype) -> int:
        """The bytes that a rotation has to move: query and key read once and written once."""
        heads = self.query_heads + self.key_heads
        return 2 * dtype.itemsize * self.batch * self.tokens * heads * self.head_dim

    def __str__(self) -> str:
        return (
            f"{self.name}: B{self.batch} S{self.tokens} Hq{self.query_heads} Hk{self.key_heads} "
            f"D{self.head_dim}, {self.layout}"
        )


CASES = {
    case.name: case
    for case in (
        Case("prefill", 1, 4096, 32, 8, 128, (torch.float32, torch.bfloat16, torch.float16)),
        Case("prefill-bhsd", 1, 4096, 32, 8, 128, heads_first=True),
        Case("train", 8, 512, 16, 16, 64),
        Case("small", 1, 128, 9, 3, 64),
        Case("decode32", 32, 1, 32, 8, 128),
        Case("decode", 1, 1, 32, 8, 128),
    )
}


@dataclass(frozen=True)
class Inputs:
    """The tensors of a case; `cos` and `sin` are float32 of shape (tokens, head_dim / 2)."""

    query: Tensor
    key: Tensor
    cos: Tensor
    sin: Tensor
    seq_dim: int

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype) -> "Inputs":
        """Return standard normal query and key, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        query, key = (
            torch.randn(case.shape(heads), generator=generator).to(dtype)
            for heads in (case.query_heads, case.key_heads)
        )
        positions = torch.arange(FIRST_POSITION, FIRST_POSITION + case.tokens)
        cos, sin = frequencies.tables(positions, frequencies.standard(case.head_dim))
        return cls(query, key, cos, sin, case.seq_dim)

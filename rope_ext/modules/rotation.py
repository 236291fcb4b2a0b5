"""What all modules share: their state, and the choice between in place and functional."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from rope_ext import ops
from rope_ext.frequencies import turns

if TYPE_CHECKING:
    from typing_extensions import Self


class Options(TypedDict, total=False):
    """The keywords that every module hands on to :class:`Rotation`.

    Example:
        >>> Options(interleaved=True, seq_dim=-2)
        {'interleaved': True, 'seq_dim': -2}
    """

    start: int
    interleaved: bool
    seq_dim: int
    inplace: bool
    learnable: bool


class Operators(NamedTuple):
    """The two forms of one rotation: in place, and its functional twin.

    Example:
        >>> Operators._fields
        ('apply', 'rotate')
    """

    apply: Callable[..., None]
    rotate: Callable[..., Tensor]


FREQUENCIES = Operators(ops.apply_frequencies, ops.rotate_frequencies)
TABLES = Operators(ops.apply, ops.rotate)

_STATE = ("turns", "_radian_bits")

# An operator's arguments between key and flags, and its flags.
Angles = tuple[Tensor | float | None, ...]
Flags = tuple[int | bool | None, ...]


class Rotation(nn.Module):
    """Rotates by one matrix of frequencies: what the modules for text, pictures and video are.

    Frequencies are kept as int64 turns, and once more as the bits of float64 radians for floating
    positions: buffers that no cast of a model can round, that are in no ``state_dict``, and that
    are made anew when a module leaves the meta device. Nothing is cached and no position is too
    large. Source: RoFormer, Su et al. 2021, https://arxiv.org/abs/2104.09864.

    Args:
        head_dim: D, elements of a head.
        frequencies: ``(P,)``, or ``(A, P)`` or ``(A, H, P)`` for positions with A axes; in radians
            per unit of position, of any floating dtype, kept in float64.
        scale: multiplies cosine and sine (an attention factor).
        start: first rotated element of a head; ``2 P`` are rotated.
        interleaved: pairs are neighbours and not half a slice apart.
        seq_dim: -3 for ``(..., S, H, D)``, -2 for ``(..., H, S, D)``.
        inplace: the inputs are consumed: use what is returned. Where autograd would have to copy
            (a view or a leaf that requires grad) the result is a new tensor all the same. False
            leaves the inputs alone.
        learnable: the frequencies are a float32 parameter, ``frequencies``: stored, and cast with
            the model.

    Raises:
        ValueError: pairs that do not fit into a head, frequencies that are not finite, or a
            seq_dim other than -3 and -2.

    Example:
        >>> import math, torch
        >>> quarter = Rotation(2, torch.tensor([math.pi / 2]))
        >>> quarter(torch.tensor([1.0, 0.0]).repeat(3, 1, 1)).round().flatten(1).tolist()
        [[1.0, 0.0], [-0.0, 1.0], [-1.0, -0.0]]
    """

    turns: Tensor
    _radian_bits: Tensor

    def __init__(
        self,
        head_dim: int,
        frequencies: Tensor,
        scale: float = 1.0,
        *,
        start: int = 0,
        interleaved: bool = False,
        seq_dim: int = -3,
        inplace: bool = True,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.rotary_dim = 2 * frequencies.shape[-1]
        self.start = start
        self.interleaved = interleaved
        self.seq_dim = seq_dim
        self.inplace = inplace
        self.learnable = learnable
        self.attention_scaling = scale
        self.rope_type = "default"
        if start < 0 or start + self.rotary_dim > head_dim:
            raise ValueError(
                f"rotary_dim must fit into head_dim ({head_dim}) from start on, "
                f"got rotary_dim={self.rotary_dim} and start={start}"
            )
        if seq_dim not in (-3, -2):
            raise ValueError(
                f"seq_dim must be -3 (..., S, H, D) or -2 (..., H, S, D), got {seq_dim}"
            )
        # Neither parameter nor buffer, so that it stays what it is, on the CPU.
        self._original = frequencies.detach().to("cpu", torch.float64)
        if learnable:
            self.frequencies = nn.Parameter(torch.empty(frequencies.shape, dtype=torch.float32))
        else:
            for name in _STATE:
                state = torch.empty(frequencies.shape, dtype=torch.int64)
                self.register_buffer(name, state, persistent=False)
        self.reset_parameters()
        # transformers would calculate what it knows by the name original_inv_freq once more.
        self._is_hf_initialized = not learnable

    def reset_parameters(self) -> None:
        """Set the frequencies to what the module was made with."""
        with torch.no_grad():
            if self.learnable:
                self.frequencies.copy_(self._original)
            else:
                self.turns.copy_(turns(self._original))
                self._radian_bits.copy_(self._original.view(torch.int64))

    def forward(
        self, query: Tensor, key: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotates query and key by their positions.

        Args:
            query: ``(..., S, H, D)``, or ``(..., H, S, D)`` with ``seq_dim=-2``.
            key: like query, with heads of its own number, or None.
            positions: ``(S,)`` or ``(..., S)``, with a last axis A where frequencies have one;
                int32, int64, float32 or float64, of any size and sign. None: the token's index.

        Returns:
            ``(query, key)``, or ``query`` when key is None.

        Raises:
            As :func:`rope_ext.apply_frequencies_`.
        """
        self._check(query)
        angles = positions, self._frequencies(positions), self.attention_scaling
        query, key = turn(query, key, angles, self._flags(), self.inplace)
        return query if key is None else (query, key)

    def forward_packed(
        self, qkv: Tensor, num_heads: int, num_key_heads: int, positions: Tensor | None = None
    ) -> Tensor:
        """Rotates queries and keys within a packed projection, without a view of it.

        Args:
            qkv: ``(..., S, (Hq + Hk + Hv) * D)``: all query heads, then keys, then values.
            num_heads: Hq.
            num_key_heads: Hk. With frequencies per head, Hq and Hk must both be their number.
            positions: as in :meth:`forward`.

        Returns:
            ``qkv``, rotated: the same tensor, or a new one where :meth:`forward` would make one.

        Raises:
            As :func:`rope_ext.apply_frequencies_`.

        Example:
            >>> import torch, rope_ext
            >>> projection = torch.nn.Linear(64, (4 + 2 + 2) * 16)
            >>> rope = rope_ext.RotaryEmbedding(16)
            >>> qkv = rope.forward_packed(projection(torch.randn(2, 10, 64)), 4, 2)
            >>> query, key, value = qkv.unflatten(-1, (-1, 16)).split((4, 2, 2), dim=-2)
        """
        frequencies = self._frequencies(positions)
        if frequencies.dim() == 3 and frequencies.shape[1] > 1:
            frequencies = frequencies.repeat(1, 2, 1)
        angles = positions, frequencies, self.attention_scaling
        flags = self._packed_flags(num_heads + num_key_heads)
        return turn(qkv, None, angles, flags, self.inplace)[0]

    @property
    def radians(self) -> Tensor:
        """The frequencies in radians per unit of position: float64, or the learned parameter."""
        return self.frequencies if self.learnable else self._radian_bits.view(torch.float64)

    @property
    def inv_freq(self) -> Tensor:
        """The frequencies in radians per unit of position, rounded to float32."""
        return self.radians.detach().float()

    @property
    def original_inv_freq(self) -> Tensor:
        """As :attr:`inv_freq`, before anything was learned."""
        return self._original.to(self.radians.device, torch.float32)

    def extra_repr(self) -> str:
        return (
            f"{self.head_dim}, rotary_dim={self.rotary_dim}, start={self.start}, "
            f"interleaved={self.interleaved}, seq_dim={self.seq_dim}, inplace={self.inplace}, "
            f"learnable={self.learnable}"
        )

    def _frequencies(self, positions: Tensor | None) -> Tensor:
        """Turns for whole positions, radians for others and where they are learned."""
        if self.learnable:
            # The operator takes no 16-bit frequencies; the model may have been cast to them.
            frequencies = self.frequencies
            return frequencies if frequencies.dtype == torch.float64 else frequencies.float()
        if positions is not None and positions.is_floating_point():
            return self.radians
        return self.turns

    def _flags(self) -> Flags:
        return self.seq_dim, None, None, self.start, self.interleaved

    def _packed_flags(self, heads: int) -> Flags:
        return -3, self.head_dim, heads, self.start, self.interleaved

    def _check(self, query: Tensor) -> None:
        """The operator is told the head_dim of flat tensors alone."""
        if query.dim() < 3 or query.shape[-1] != self.head_dim:
            raise ValueError(
                f"query must have at least 3 dimensions, the last of head_dim {self.head_dim}, "
                f"got shape {tuple(query.shape)}"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # transformers brings a model off the meta device so, by memory without contents.
        if name in _STATE and all(state in self._buffers for state in _STATE):
            self.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        turns = self._buffers.get("turns")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Memory that is new may be without contents: off the meta device, or from to_empty.
        if self._buffers.get("turns") is not turns:
            self.reset_parameters()
        return self


def turn(
    query: Tensor,
    key: Tensor | None,
    angles: Angles,
    flags: Flags,
    inplace: bool,
    operators: Operators = FREQUENCIES,
) -> tuple[Tensor, Tensor | None]:
    """Rotates in place where that is allowed, right and cheap, and otherwise into new tensors.

    Args:
        query, key: what is rotated; key may be None.
        angles: the operator's arguments between key and flags.
        flags: the operator's flags, in its order.
        inplace: whether the inputs may be overwritten.
        operators: of frequencies or of tables.

    Returns:
        ``(query, key)``.

    Raises:
        As the operators.

    Example:
        >>> import torch
        >>> query, quarter = torch.ones(1, 1, 2), torch.tensor([2**62])
        >>> turn(query, None, (torch.tensor([1]), quarter, 1.0), (), inplace=True)[0] is query
        True
    """
    if inplace and not _autograd_copies(query, key, angles):
        operators.apply(query, key, *angles, *flags)
    else:
        query = operators.rotate(query, *angles, *flags)
        key = None if key is None else operators.rotate(key, *angles, *flags)
    return query, key


def _autograd_copies(query: Tensor, key: Tensor | None, angles: Angles) -> bool:
    """In place, a leaf is refused and a view makes the backward pass copy its base.

    A compiler cannot ask which is which, and drops the copies that it does not need.
    """
    if not torch.is_grad_enabled():
        return False
    learned = any(isinstance(angle, Tensor) and angle.requires_grad for angle in angles)
    return any(
        (tensor.requires_grad or learned)
        and (
            torch.compiler.is_compiling()
            or (tensor.requires_grad and tensor.is_leaf)
            or tensor._is_view()
        )
        for tensor in (query, key)
        if tensor is not None
    )

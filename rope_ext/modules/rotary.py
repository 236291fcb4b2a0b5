"""Text: one axis of positions, and the rules that stretch it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rope_ext.frequencies import standard
from rope_ext.modules.rotation import (
    FREQUENCIES,
    TABLES,
    Angles,
    Operators,
    Options,
    Rotation,
    turn,
)
from rope_ext.scaling import (
    DynamicNTK,
    Linear,
    Llama3,
    LongRoPE,
    Pinned,
    Proportional,
    Scaling,
    YaRN,
    from_hf_config,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class RotaryEmbedding(Rotation):
    """Rotates queries and keys by their positions.

    Pair i of a head turns by ``position * base ** (-2 i / rotary_dim)`` radians, exact at any whole
    position, of either sign, whatever ``.half()``, ``.to(dtype)`` or autocast do to the model.
    There is no table and no longest sequence. A layer without positions (NoPE) does not call it.
    Source: RoFormer, Su et al. 2021, section 3.2.2, https://arxiv.org/abs/2104.09864.

    A scaling that depends on the length of a sequence chooses its frequencies on the device and
    anew in each call: keys in a cache keep the ones that they were rotated with, unless the length
    is pinned (:class:`rope_ext.scaling.Pinned`).

    Args:
        head_dim: D, elements of a head.
        base: theta, the base of the frequencies.
        rotary_dim: elements of a head that are rotated; None: all from ``start`` on.
        scaling: a rule of :mod:`rope_ext.scaling`, whose factor multiplies cosine and sine.
        frequencies: instead of those of base and rotary_dim: ``(P,)``, ``(A, P)`` or
            ``(A, H, P)`` in radians per unit of position, as in :class:`Rotation`.
        options: start, interleaved, seq_dim, inplace and learnable, as in :class:`Rotation`.

    Raises:
        ValueError: an odd or too wide rotary_dim, a base that is not positive and finite, a
            seq_dim other than -3 and -2, frequencies that a rule is not made for, or a rule that
            depends on the length for learned frequencies or several axes.

    Example:
        >>> import torch, rope_ext
        >>> rope = rope_ext.RotaryEmbedding(64)
        >>> query, key = torch.randn(2, 10, 8, 64), torch.randn(2, 10, 2, 64)
        >>> query, key = rope(query, key)
        >>> query.shape
        torch.Size([2, 10, 8, 64])
    """

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10000.0,
        rotary_dim: int | None = None,
        scaling: Scaling | None = None,
        frequencies: Tensor | None = None,
        **options: Unpack[Options],
    ) -> None:
        if frequencies is None:
            elements = head_dim - options.get("start", 0) if rotary_dim is None else rotary_dim
            frequencies = standard(elements, base)
        elif rotary_dim not in (None, 2 * frequencies.shape[-1]):
            raise ValueError(
                f"rotary_dim must be twice the {frequencies.shape[-1]} pairs of frequencies, "
                f"got {rotary_dim}"
            )
        scale = 1.0
        if scaling is not None:
            if scaling.depends_on_length and (options.get("learnable") or frequencies.dim() > 1):
                raise ValueError(
                    "scaling must be pinned to a length (scaling.Pinned) for learned frequencies "
                    f"and for several axes, got {scaling}"
                )
            frequencies = scaling.prepare(frequencies.detach().to("cpu", torch.float64))
            scale = scaling.scale
        super().__init__(head_dim, frequencies, scale, **options)
        self.scaling = scaling
        self.rope_type = rope_type(scaling)

    @classmethod
    def from_hf_config(
        cls, config: object, layer_type: str | None = None, **options: Unpack[Options]
    ) -> Self:
        """Makes the rotation of a transformers model from its configuration.

        Args:
            config, layer_type: as in :func:`rope_ext.scaling.from_hf_config`.
            options: as in :class:`RotaryEmbedding`. How pairs lie in a head (``interleaved``) is
                in the code of a model and not in its configuration.

        Raises:
            ValueError: as :func:`rope_ext.scaling.from_hf_config`, or the configuration is of
                M-RoPE, which :class:`rope_ext.MRotaryEmbedding` reads.

        Example:
            >>> import rope_ext
            >>> config = {"head_dim": 64, "rope_theta": 500000.0, "partial_rotary_factor": 0.5}
            >>> rope_ext.RotaryEmbedding.from_hf_config(config).rotary_dim
            32
        """
        settings = from_hf_config(config, layer_type)
        if settings.sections is not None:
            raise ValueError(
                "config must have one axis of positions (MRotaryEmbedding reads several), "
                f"got mrope_section {list(settings.sections)}"
            )
        return cls(
            settings.head_dim,
            base=settings.base,
            rotary_dim=settings.rotary_dim,
            scaling=settings.scaling,
            **options,
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        length: int | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotates query and key by their positions.

        Args:
            query, key, positions: as in :meth:`Rotation.forward`.
            length: tokens of the sequences, which a scaling may depend on and nothing else does: a
                number, or a tensor of any integer dtype on query's device, without dimensions or of
                a shape that broadcasts to the leading dimensions ``...``, for sequences with
                frequencies of their own. None: the largest position plus one, of all sequences.

        Returns:
            ``(query, key)``, or ``query`` when key is None.

        Raises:
            As :func:`rope_ext.apply_frequencies_`.
        """
        if self.scaling is None or not self.scaling.depends_on_length:
            return super().forward(query, key, positions)
        self._check(query)
        tokens = query.shape[self.seq_dim]
        angles, operators = self._angles(query, tokens, positions, length)
        query, key = turn(query, key, angles, self._flags(), self.inplace, operators)
        return query if key is None else (query, key)

    def forward_packed(
        self,
        qkv: Tensor,
        num_heads: int,
        num_key_heads: int,
        positions: Tensor | None = None,
        *,
        length: int | Tensor | None = None,
    ) -> Tensor:
        """As :meth:`Rotation.forward_packed`, with the length of :meth:`forward`."""
        if self.scaling is None or not self.scaling.depends_on_length:
            return super().forward_packed(qkv, num_heads, num_key_heads, positions)
        angles, operators = self._angles(qkv, qkv.shape[-2], positions, length)
        flags = self._packed_flags(num_heads + num_key_heads)
        return turn(qkv, None, angles, flags, self.inplace, operators)[0]

    @property
    def inv_freq(self) -> Tensor:
        """As :attr:`Rotation.inv_freq`, within the original context."""
        return super().inv_freq if self.scaling is None else self.scaling.at(super().inv_freq)

    @property
    def original_inv_freq(self) -> Tensor:
        """As :attr:`Rotation.original_inv_freq`, within the original context."""
        original = super().original_inv_freq
        return original if self.scaling is None else self.scaling.at(original)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scaling={self.scaling}"

    def _angles(
        self, query: Tensor, tokens: int, positions: Tensor | None, length: int | Tensor | None
    ) -> tuple[Angles, Operators]:
        """Angles by a rule that depends on the length, and the operators that take them."""
        assert self.scaling is not None
        if length is None:
            length = _length(query, tokens, positions)
        if isinstance(length, Tensor) and length.dim() > 0:
            if positions is None:
                positions = torch.arange(tokens, device=query.device)
            tables = self._tables(positions, self.scaling.at(self.radians, length), query.dtype)
            return (*tables, None), TABLES
        # LongRoPE chooses between rows, which may be turns; other rules calculate with radians.
        rows = isinstance(self.scaling, LongRoPE)
        prepared = self._frequencies(positions) if rows else self.radians
        frequencies = self.scaling.at(prepared, length)
        return (positions, frequencies, self.attention_scaling), FREQUENCIES

    def _tables(
        self, positions: Tensor, frequencies: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines for sequences with frequencies ``(..., P)`` of their own."""
        angles = positions.to(torch.float64).unsqueeze(-1) * frequencies.unsqueeze(-2)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        cos, sin = self.attention_scaling * angles.cos(), self.attention_scaling * angles.sin()
        return cos.to(compute), sin.to(compute)


def _length(query: Tensor, tokens: int, positions: Tensor | None) -> int | Tensor:
    """One length for all sequences: the largest position plus one."""
    if positions is None:
        # A number that a compiler sees would make it compile again at each rule's threshold.
        compiling = torch.compiler.is_compiling()
        return torch.full((), tokens, device=query.device) if compiling else tokens
    return positions.amax() + 1 if positions.numel() > 0 else 0


# As transformers calls them; other rules go by the names of their classes.
_ROPE_TYPES: dict[type, str] = {
    type(None): "default",
    Linear: "linear",
    DynamicNTK: "dynamic",
    YaRN: "yarn",
    LongRoPE: "longrope",
    Llama3: "llama3",
    Proportional: "proportional",
}


def rope_type(scaling: Scaling | None) -> str:
    """Returns what transformers calls a rule, or the name of its class.

    Example:
        >>> from rope_ext.scaling import Pinned
        >>> rope_type(None), rope_type(Pinned(DynamicNTK(2.0, 2048), 4096))
        ('default', 'dynamic')
    """
    if isinstance(scaling, Pinned):
        return rope_type(scaling.scaling)
    return _ROPE_TYPES.get(type(scaling), type(scaling).__name__)

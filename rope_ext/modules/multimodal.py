"""Text with pictures and videos in it: one series of frequencies dealt to several axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from rope_ext.frequencies import sections as deal
from rope_ext.frequencies import standard
from rope_ext.modules.rotary import rope_type
from rope_ext.modules.rotation import Options, Rotation
from rope_ext.scaling import Scaling, from_hf_config

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class MRotaryEmbedding(Rotation):
    """Rotates queries and keys by positions in time, height and width: M-RoPE.

    Text, whose positions are the same on all axes, turns as in :class:`RotaryEmbedding`.
    :func:`rope_ext.positions.multimodal` lays out text, pictures and videos.
    Source: Qwen2-VL, Wang et al. 2024, section 2.1, https://arxiv.org/abs/2409.12191.

    Args:
        head_dim: D, elements of a head.
        sections: the pairs of each axis. Hugging Face calls it ``mrope_section``.
        order: how the pairs are dealt: see :func:`rope_ext.frequencies.sections`.
        base: theta, the base of the frequencies.
        scaling: a rule of :mod:`rope_ext.scaling`, applied before the pairs are dealt.
        options: start, interleaved, seq_dim, inplace and learnable, as in :class:`Rotation`.

    Raises:
        ValueError: as :class:`Rotation` and :func:`rope_ext.frequencies.sections`, or a scaling
            that depends on the length.

    Example:
        >>> import torch, rope_ext
        >>> rope = rope_ext.MRotaryEmbedding(128, (16, 24, 24), base=1000000.0)
        >>> picture = rope_ext.positions.grid(1, 4, 6)
        >>> positions = rope_ext.positions.multimodal(3, picture, 5)
        >>> query, key = rope(torch.randn(32, 8, 128), torch.randn(32, 2, 128), positions)
    """

    def __init__(
        self,
        head_dim: int,
        sections: Sequence[int],
        *,
        order: Literal["chunked", "interleaved", "alternating"] = "chunked",
        base: float = 10000.0,
        scaling: Scaling | None = None,
        **options: Unpack[Options],
    ) -> None:
        frequencies = standard(2 * sum(sections), base)
        scale = 1.0
        if scaling is not None:
            if scaling.depends_on_length:
                raise ValueError(
                    "scaling must be pinned to a length (scaling.Pinned) for several axes, "
                    f"got {scaling}"
                )
            frequencies, scale = scaling(frequencies)
        super().__init__(head_dim, deal(frequencies, sections, order), scale, **options)
        self.axes = len(sections)
        self.rope_type = rope_type(scaling)

    @classmethod
    def from_hf_config(
        cls, config: object, layer_type: str | None = None, **options: Unpack[Options]
    ) -> Self:
        """Makes the rotation of a transformers model from its configuration.

        Args:
            config, layer_type: as in :func:`rope_ext.scaling.from_hf_config`.
            options: as in :class:`MRotaryEmbedding`.

        Raises:
            ValueError: as :func:`rope_ext.scaling.from_hf_config`, or there is no mrope_section.

        Example:
            >>> import rope_ext
            >>> config = {
            ...     "head_dim": 128,
            ...     "rope_theta": 1000000.0,
            ...     "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            ... }
            >>> rope_ext.MRotaryEmbedding.from_hf_config(config).axes
            3
        """
        settings = from_hf_config(config, layer_type)
        if settings.sections is None:
            raise ValueError("config must have an mrope_section, got none")
        return cls(
            settings.head_dim,
            settings.sections,
            order=settings.order,
            base=settings.base,
            scaling=settings.scaling,
            **options,
        )

    def forward(
        self, query: Tensor, key: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotates query and key by their positions.

        Args:
            query, key: as in :meth:`Rotation.forward`.
            positions: ``(S, A)`` or ``(..., S, A)``, or ``(S,)``, the same on all axes; int32,
                int64, float32 or float64. None: the token's index, on all axes.

        Returns:
            ``(query, key)``, or ``query`` when key is None.

        Raises:
            As :func:`rope_ext.apply_frequencies_`.
        """
        return super().forward(query, key, self._on_all_axes(positions))

    def forward_packed(
        self, qkv: Tensor, num_heads: int, num_key_heads: int, positions: Tensor | None = None
    ) -> Tensor:
        """As :meth:`Rotation.forward_packed`, with the positions of :meth:`forward`."""
        return super().forward_packed(qkv, num_heads, num_key_heads, self._on_all_axes(positions))

    @property
    def inv_freq(self) -> Tensor:
        """The series ``(P,)`` in radians per unit of position, rounded to float32."""
        return super().inv_freq.sum(0)

    @property
    def original_inv_freq(self) -> Tensor:
        """As :attr:`inv_freq`, before anything was learned."""
        return super().original_inv_freq.sum(0)

    def _on_all_axes(self, positions: Tensor | None) -> Tensor | None:
        if positions is None or positions.dim() != 1:
            return positions
        return positions.unsqueeze(-1).expand(-1, self.axes)

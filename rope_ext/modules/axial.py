"""Pictures and videos: a block of pairs for each axis of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rope_ext import positions as coordinates_of
from rope_ext.frequencies import axial
from rope_ext.modules.rotation import Options, Rotation

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class CoordinateAugmentation:
    """Moves and stretches the coordinates of a picture at random, for training.

    Args:
        shift: each axis moves by up to this much, either way, uniformly.
        jitter: each axis is stretched by a factor from ``1 / jitter`` to ``jitter``, log-uniformly.
        rescale: all axes are, by one factor from ``1 / rescale`` to ``rescale``.

    Raises:
        ValueError: a negative shift, or a jitter or rescale below 1.

    Source: DINOv3, Simeoni et al. 2025, https://arxiv.org/abs/2508.10104, section 3.2 and its code.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
        >>> generator = torch.Generator().manual_seed(0)
        >>> moved = CoordinateAugmentation(rescale=2.0)(corners, generator)
        >>> bool((moved[0] == -moved[1]).all()), bool(0.5 <= moved[1, 0] <= 2)
        (True, True)
    """

    shift: float = 0.0
    jitter: float = 1.0
    rescale: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift >= 0:
            raise ValueError(f"shift must be at least 0, got {self.shift}")
        for name in ("jitter", "rescale"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw once and change all positions by it.

        Args:
            positions: ``(..., S, A)``, in units of the coordinates.
            generator: of the draws, on the device of positions.

        Returns:
            The same shape, float64.
        """

        def draw(numbers: int) -> Tensor:
            uniform = torch.rand(
                numbers, dtype=torch.float64, device=positions.device, generator=generator
            )
            return 2 * uniform - 1

        axes = positions.shape[-1]
        moved = positions + self.shift * draw(axes)
        return moved * self.jitter ** draw(axes) * self.rescale ** draw(1)


class GridOptions(Options, total=False):
    """The keywords that say how a grid becomes positions; see :class:`AxialRotaryEmbedding`.

    Example:
        >>> GridOptions(prefix_tokens=5)
        {'prefix_tokens': 5}
    """

    coordinates: Callable[[int], Tensor]
    prefix_tokens: int
    augmentation: CoordinateAugmentation


class AxialRotaryEmbedding(Rotation):
    """Rotates queries and keys by the places of their tokens in a grid.

    Each axis turns a block of pairs of its own. Positions are made by :meth:`grid` once a step and
    serve all layers; those of pictures of different sizes are concatenated for sequences that are
    packed into one. Whole coordinates are exact as in :class:`RotaryEmbedding`.
    Source: axial RoPE, Heo et al. 2024, https://arxiv.org/abs/2403.13298.

    Args:
        head_dim: D, elements of a head.
        axes: for each axis the elements of a head that it turns (even), or a number of axes that
            share all elements from ``start`` on evenly, each an even number; what is left is not
            rotated.
        bases: one for all axes, or one for each.
        frequencies: instead of those of axes and bases: ``(A, P)`` or ``(A, H, P)`` in radians per
            unit of position, from :mod:`rope_ext.frequencies`.
        coordinates: what the size of an axis becomes, such as
            :func:`rope_ext.positions.normalised`; None: the numbers of its cells.
        prefix_tokens: class and register tokens before the cells: at position 0 on all axes, and so
            not turned.
        augmentation: changes coordinates in training.
        options: start, interleaved, seq_dim, inplace and learnable, as in :class:`Rotation`.

    Raises:
        ValueError: as :class:`Rotation` and :func:`rope_ext.frequencies.axial`, or prefix_tokens
            below 0.

    Example:
        >>> import torch, rope_ext
        >>> rope = rope_ext.AxialRotaryEmbedding(64, prefix_tokens=1)
        >>> places = torch.cat([rope.grid(2, 3), rope.grid(4, 4)])
        >>> query, key = rope(torch.randn(7 + 17, 8, 64), torch.randn(7 + 17, 8, 64), places)

    The vision transformer of DINOv3:

        >>> import math
        >>> dinov3 = rope_ext.AxialRotaryEmbedding(
        ...     64,
        ...     frequencies=2 * math.pi * rope_ext.frequencies.axial((32, 32), 100.0),
        ...     coordinates=rope_ext.positions.normalised,
        ...     prefix_tokens=5,
        ...     augmentation=rope_ext.CoordinateAugmentation(rescale=2.0),
        ... )
        >>> dinov3.grid(14, 14).shape
        torch.Size([201, 2])
    """

    def __init__(
        self,
        head_dim: int,
        axes: int | Sequence[int] = 2,
        *,
        bases: float | Sequence[float] = 10000.0,
        frequencies: Tensor | None = None,
        coordinates: Callable[[int], Tensor] | None = None,
        prefix_tokens: int = 0,
        augmentation: CoordinateAugmentation | None = None,
        **options: Unpack[Options],
    ) -> None:
        if frequencies is None:
            dims = shares(head_dim - options.get("start", 0), axes)
            frequencies = axial(dims, bases)
        if prefix_tokens < 0:
            raise ValueError(f"prefix_tokens must be at least 0, got {prefix_tokens}")
        super().__init__(head_dim, frequencies, **options)
        self.axes = len(frequencies)
        self.coordinates = coordinates
        self.prefix_tokens = prefix_tokens
        self.augmentation = augmentation

    def grid(self, *sizes: int, generator: torch.Generator | None = None) -> Tensor:
        """Returns the positions of a grid and of the prefix tokens before it.

        In training they are augmented, if the module was made so, by a new draw in each call: call
        it once for all layers.

        Args:
            sizes: the cells of each axis; the last one counts fastest.
            generator: of the augmentation, on the CPU.

        Returns:
            ``(prefix_tokens + cells, A)``, int64 or float64, on the module's device.

        Raises:
            ValueError: not one size for each axis, or a size below 0.

        Example:
            >>> import rope_ext
            >>> rope_ext.AxialRotaryEmbedding(64, prefix_tokens=1).grid(1, 2).tolist()
            [[0, 0], [0, 0], [0, 1]]
        """
        if len(sizes) != self.axes:
            raise ValueError(f"sizes must be {self.axes} (one an axis), got {len(sizes)}")
        cells = coordinates_of.grid(
            *(size if self.coordinates is None else self.coordinates(size) for size in sizes)
        )
        if self.training and self.augmentation is not None:
            cells = self.augmentation(cells, generator)
        padded = nn.functional.pad(cells, (0, 0, self.prefix_tokens, 0))
        return padded.to(self.radians.device)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        positions: Tensor | Sequence[int] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotates query and key by their places.

        Args:
            query, key: as in :meth:`Rotation.forward`.
            positions: ``(S, A)`` or ``(..., S, A)``, int32, int64, float32 or float64; or the sizes
                of one grid, for ``grid(*sizes)``. They must be given.

        Returns:
            ``(query, key)``, or ``query`` when key is None.

        Raises:
            ValueError: no positions, or sizes where :meth:`grid` draws anew in each call.
            TypeError, ValueError, RuntimeError: as :func:`rope_ext.apply_frequencies_`.
        """
        return super().forward(query, key, self._places(positions))

    def forward_packed(
        self,
        qkv: Tensor,
        num_heads: int,
        num_key_heads: int,
        positions: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """As :meth:`Rotation.forward_packed`, with the positions of :meth:`forward`."""
        return super().forward_packed(qkv, num_heads, num_key_heads, self._places(positions))

    def _places(self, positions: Tensor | Sequence[int] | None) -> Tensor:
        if isinstance(positions, Tensor):
            return positions
        if positions is None:
            raise ValueError(
                "positions must be given, (..., S, A) or the sizes of a grid, got None"
            )
        if self.training and self.augmentation is not None:
            raise ValueError(
                "positions must be a tensor, made by grid() once for all layers, where they are "
                f"augmented, got sizes {tuple(positions)}"
            )
        return self.grid(*positions)


def shares(elements: int, axes: int | Sequence[int]) -> Sequence[int]:
    """Returns for each axis the elements of a head that it turns.

    Args:
        elements: of a head, to be shared.
        axes: a number of axes, which get as many each, an even number; or the answer.

    Returns:
        The elements of each axis.

    Raises:
        ValueError: axes is a number below 1.

    Example:
        >>> shares(80, 3), shares(80, (16, 32, 32))
        ([26, 26, 26], (16, 32, 32))
    """
    if not isinstance(axes, int):
        return axes
    if axes < 1:
        raise ValueError(f"axes must be at least 1, got {axes}")
    return [elements // axes // 2 * 2] * axes

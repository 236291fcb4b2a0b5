"""Pictures of what rotations do, as matplotlib figures.

matplotlib is an extra, ``pip install "rope_ext[plot]"``, and imported when a figure is made.
``python -m rope_ext plot`` writes the pictures of docs/frequencies.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rope_ext.frequencies import wavelengths
from rope_ext.positions import grid
from rope_ext.scaling import Scaling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's colours, which colour-blind readers tell apart, those that show on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_GREY = "0.45"
_DASHES = ((1, 0), (6, 1), (3, 1), (1, 1))  # where curves coincide, each still shows
_NEAR = 1.2  # similarity takes distances up to this ratio together: ripples become a band


def rotation(frequencies: Tensor, tokens: int) -> Figure:
    """Draw how each pair turns over the positions.

    A panel for each pair shows cosine and sine of its angle: where a pair that is (1, 0) at
    position 0 is turned to.

    Args:
        frequencies: ``(P,)`` in radians per token, P at least 1.
        tokens: the position to draw to; positive.

    Returns:
        The figure, with P panels.

    Raises:
        TypeError: frequencies that are not floating point, such as turns.
        ValueError: frequencies of another shape, or ``tokens`` is not positive.
        ImportError: matplotlib is not installed.

    Source: RoFormer, Su et al. 2021, https://arxiv.org/abs/2104.09864.

    >>> from rope_ext.frequencies import standard
    >>> len(rotation(standard(16), tokens=256).axes)
    8
    """
    frequencies = _one_axis(frequencies)
    _check_positive("tokens", tokens)
    figure, panels = _panels(rows=len(frequencies), height=0.8 + 0.45 * len(frequencies))
    positions = torch.linspace(0, tokens, 1500, dtype=torch.float64)
    for pair, (panel, frequency) in enumerate(zip(panels, frequencies, strict=True)):
        angles = positions * frequency
        panel.plot(positions.numpy(), angles.cos().numpy(), color=_COLOURS[0], label="cosine")
        panel.plot(positions.numpy(), angles.sin().numpy(), color=_COLOURS[5], label="sine")
        panel.set(xlim=(0, tokens), ylim=(-1.2, 1.2), yticks=[])
        panel.tick_params(bottom=panel is panels[-1])
        panel.spines[["left", "bottom"]].set_visible(False)
        panel.set_ylabel(f"pair {pair}", rotation="horizontal", ha="right", va="center")
        wavelength = f"{wavelengths(frequency).item():,.0f} tokens"
        panel.text(1.01, 0.5, wavelength, va="center", transform=panel.transAxes)
    panels[0].text(1.01, 1.25, "one turn in", va="bottom", transform=panels[0].transAxes)
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    panels[-1].set_xlabel("position (tokens)")
    return figure


def similarity(series: Mapping[str, Tensor], tokens: int) -> Figure:
    """Draw how alike a vector and its like stay when they are moved apart.

    The score of two equal random vectors is, up to their length, the mean cosine of the angles of
    their pairs; that of independent vectors is 0.

    Args:
        series: for each curve its name and its frequencies, ``(P,)`` in radians per token.
        tokens: the largest distance to draw; at least 2.

    Returns:
        The figure, with a curve for each series: the mean over distances up to a fifth shorter or
        longer, in a band from the least of them to the most.

    Raises:
        TypeError: frequencies that are not floating point, such as turns.
        ValueError: frequencies of another shape, or ``tokens`` is below 2.
        ImportError: matplotlib is not installed.

    Source: Base of RoPE Bounds Context Length, Men et al. 2024, https://arxiv.org/abs/2405.14591.

    >>> from rope_ext.frequencies import standard
    >>> figure = similarity({"small": standard(64, 100.0), "large": standard(64, 1e6)}, 1024)
    >>> [line.get_label() for line in figure.axes[0].lines[:2]]
    ['small', 'large']
    """
    if tokens < 2:
        raise ValueError(f"tokens must be at least 2, got {tokens}")
    every = torch.arange(math.floor(tokens * _NEAR) + 1, dtype=torch.float64)
    distances = (tokens ** torch.linspace(0, 1, 300, dtype=torch.float64)).round().unique()
    figure, (panel,) = _panels(height=4.0)
    for (name, frequencies), colour in zip(series.items(), cycle(_COLOURS)):
        scores = torch.outer(every, _one_axis(frequencies)).cos().mean(-1)
        windows = [
            scores[math.ceil(distance / _NEAR) : math.floor(distance * _NEAR) + 1]
            for distance in distances.tolist()
        ]
        least, mean, most = (
            torch.stack([reduce(window) for window in windows]).numpy()
            for reduce in (torch.amin, torch.mean, torch.amax)
        )
        panel.fill_between(distances.numpy(), least, most, color=colour, alpha=0.2, linewidth=0)
        panel.plot(distances.numpy(), mean, color=colour, label=name)
    panel.axhline(0, color=_GREY, linewidth=1, zorder=0)
    panel.set(xscale="log", xlim=(1, tokens))
    panel.set(xlabel="distance (tokens)", ylabel="similarity (mean cosine)")
    panel.legend(frameon=False)
    return figure


def image(matrices: Mapping[str, Tensor], reach: int) -> Figure:
    """Draw how alike a vector and its like are in two patches of a picture.

    Args:
        matrices: for each map its name and its frequencies, ``(2, P)`` or ``(2, H, P)`` in radians
            per patch, down and to the right; the mean is over all heads and pairs.
        reach: the largest distance to draw, in patches to each side; positive.

    Returns:
        The figure, with a panel for each map: the mean cosine, as in :func:`similarity`, by where
        the other patch is.

    Raises:
        TypeError: frequencies that are not floating point, such as turns.
        ValueError: frequencies of another shape, or ``reach`` is not positive.
        ImportError: matplotlib is not installed.

    Source: RoPE for vision transformers, Heo et al. 2024, https://arxiv.org/abs/2403.13298.

    >>> from rope_ext.frequencies import axial, mixed
    >>> figure = image({"axial": axial((32, 32)), "mixed": mixed((32, 32), heads=6)}, reach=8)
    >>> figure.axes[0].images[0].get_array().shape
    (17, 17)
    """
    _check_positive("reach", reach)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    scores = [
        (grid(offsets, offsets) @ _two_axes(frequencies).flatten(1)).cos().mean(-1)
        for frequencies in matrices.values()
    ]
    least = min(score.amin().item() for score in scores)
    end = reach + 0.5
    figure, panels = _panels(columns=len(matrices), height=0.7 + 6.4 / len(matrices))
    for panel, name, score in zip(panels, matrices, scores, strict=True):
        picture = panel.imshow(
            score.unflatten(0, (len(offsets), -1)).numpy(),
            cmap="viridis",
            vmin=least,
            vmax=1,
            extent=(-end, end, end, -end),
        )
        panel.set_title(name, fontsize="medium")
        panel.set_xlabel("to the right (patches)")
    panels[0].set_ylabel("down (patches)")
    figure.colorbar(picture, ax=panels, label="similarity (mean cosine)", shrink=0.8)
    return figure


def scaling(
    frequencies: Tensor,
    rules: Mapping[str, Scaling],
    original_context_length: int,
    context_length: int,
) -> Figure:
    """Draw the wavelengths of all pairs before and after a scaling.

    Args:
        frequencies: ``(P,)`` in radians per token, before.
        rules: for each curve its name and its rule.
        original_context_length: tokens that the model was trained for, marked; positive.
        context_length: tokens of the longer sequence, marked, and what rules that depend on a
            length are asked for; positive.

    Returns:
        The figure: above the wavelengths, below by how much each rule stretches them.

    Raises:
        TypeError: frequencies that are not floating point, such as turns.
        ValueError: frequencies of another shape or that a rule is not made for, or a length that
            is not positive.
        ImportError: matplotlib is not installed.

    Source: YaRN, Peng et al. 2023, https://arxiv.org/abs/2309.00071, tells rules by wavelengths.

    >>> from rope_ext.frequencies import standard
    >>> from rope_ext.scaling import NTK, Linear
    >>> figure = scaling(standard(128), {"Linear": Linear(4.0), "NTK": NTK(4.0)}, 4096, 16384)
    >>> [line.get_label() for line in figure.axes[0].lines[:3]]
    ['before', 'Linear', 'NTK']
    """
    frequencies = _one_axis(frequencies)
    _check_positive("original_context_length", original_context_length)
    _check_positive("context_length", context_length)
    figure, (above, below) = _panels(rows=2, height=5.5)
    before = wavelengths(frequencies)
    above.plot(before.numpy(), color="black", linewidth=1, label="before")
    for name, colour, dashes in zip(rules, cycle(_COLOURS), cycle(_DASHES)):
        after = wavelengths(rules[name](frequencies, context_length)[0])
        above.plot(after.numpy(), color=colour, linewidth=2, dashes=dashes, label=name)
        below.plot((after / before).numpy(), color=colour, linewidth=2, dashes=dashes)
    for length in (original_context_length, context_length):
        above.axhline(length, color=_GREY, linewidth=1, zorder=0)
        above.annotate(
            f"{length:,} tokens", (0, length), (0, 3), textcoords="offset points", color=_GREY
        )
    above.set(yscale="log", ylabel="wavelength (tokens)")
    above.legend(frameon=False)
    below.set(ylabel="wavelength after / before", xlabel="pair")
    return figure


def _panels(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a figure as wide as a column of text, in which 10 points are easy to read."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('rope_ext.plot needs matplotlib: pip install "rope_ext[plot]"') from error
    figure = Figure((8.0, height), layout="constrained")
    grid_of_panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=columns > 1)
    panels = list(grid_of_panels.flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _one_axis(frequencies: Tensor) -> Tensor:
    if frequencies.dim() != 1 or len(frequencies) == 0:
        raise ValueError(f"frequencies must be (P,), got {tuple(frequencies.shape)}")
    return _on_the_host(frequencies)


def _two_axes(frequencies: Tensor) -> Tensor:
    if frequencies.dim() not in (2, 3) or len(frequencies) != 2:
        raise ValueError(f"frequencies must be (2, P) or (2, H, P), got {tuple(frequencies.shape)}")
    return _on_the_host(frequencies)


def _on_the_host(frequencies: Tensor) -> Tensor:
    """Learned frequencies and those of a GPU can be drawn too."""
    if not frequencies.is_floating_point():
        raise TypeError(f"frequencies must be floating point (radians), got {frequencies.dtype}")
    return frequencies.detach().to("cpu", torch.float64)


def _check_positive(name: str, value: int) -> None:
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")

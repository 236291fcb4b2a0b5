"""``python -m rope_ext plot``: the figures of :mod:`rope_ext.plot` as PNG files."""

from __future__ import annotations

import argparse
import inspect
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rope_ext import plot
from rope_ext.frequencies import axial, mixed, standard
from rope_ext.scaling import NTK, Linear, Llama3, YaRN

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _rotation(rotary_dim: int = 16, base: float = 10000.0, tokens: int = 256) -> Figure:
    """Draw how each pair turns over the positions."""
    return plot.rotation(standard(rotary_dim, base), tokens)


def _similarity(
    rotary_dim: int = 128, bases: tuple[float, ...] = (1e2, 1e4, 1e6), tokens: int = 32768
) -> Figure:
    """Draw similarity against distance, for several bases."""
    series = {f"base {base:,.0f}": standard(rotary_dim, base) for base in bases}
    return plot.similarity(series, tokens)


def _image(head_dim: int = 64, base: float = 100.0, heads: int = 12, reach: int = 12) -> Figure:
    """Draw similarity in a picture, for axial and for mixed frequencies."""
    rotary_dims = (head_dim // 2, head_dim // 2)
    directions = mixed(rotary_dims, heads, base, torch.Generator().manual_seed(0))
    matrices = {
        "axial": axial(rotary_dims, base),
        "mixed, one head": directions[:, 0],
        f"mixed, {heads} heads": directions,
    }
    return plot.image(matrices, reach)


def _scaling(
    rotary_dim: int = 128,
    base: float = 500000.0,
    original_context_length: int = 8192,
    factor: float = 8.0,
) -> Figure:
    """Draw the wavelengths before and after several scalings."""
    rules = {
        "Linear": Linear(factor),
        "NTK": NTK(factor),
        "YaRN": YaRN(factor, original_context_length),
        "Llama3": Llama3(factor, original_context_length, 1.0, 4.0),
    }
    longer = round(factor * original_context_length)
    return plot.scaling(standard(rotary_dim, base), rules, original_context_length, longer)


_FIGURES: dict[str, Callable[..., Figure]] = {
    "rotation": _rotation,
    "similarity": _similarity,
    "image": _image,
    "scaling": _scaling,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figures that the command line names.

    Args:
        arguments: those of the command line; None: ``sys.argv``.

    Raises:
        SystemExit: arguments that are wrong, and matplotlib where it is missing, by name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     main(["plot", "rotation", "--tokens", "64", "-o", f"{folder}/rotation.png"])
    """
    parser = argparse.ArgumentParser(prog="python -m rope_ext")
    commands = parser.add_subparsers(required=True, metavar="plot")
    plots = commands.add_parser("plot", help="write figures as PNG files")
    names = plots.add_subparsers(required=True, dest="name", metavar="NAME")
    for name, make in _FIGURES.items():
        _add_options(names.add_parser(name, help=make.__doc__, description=make.__doc__), make)
    every = names.add_parser("all", help="Draw all of them, as the documentation shows them.")
    every.add_argument("-o", dest="output", required=True, type=Path, metavar="FOLDER")

    options = vars(parser.parse_args(arguments))
    name, output = options.pop("name"), options.pop("output")
    try:
        if name == "all":
            output.mkdir(parents=True, exist_ok=True)
            for figure in _FIGURES:
                _write(_FIGURES[figure](), output / f"{figure}.png")
        else:
            _write(_FIGURES[name](**options), output)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")


def _add_options(parser: argparse.ArgumentParser, make: Callable[..., Figure]) -> None:
    """Give each parameter of a figure an option of its name and its default."""
    parser.add_argument("-o", dest="output", required=True, type=Path, metavar="FILE.png")
    for name, parameter in inspect.signature(make).parameters.items():
        default = parameter.default
        several = isinstance(default, tuple)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default[0] if several else default),
            nargs="+" if several else None,
            default=default,
            help="(%(default)s)",
        )


def _write(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette, a quarter of what matplotlib writes, and the same every time."""
    from PIL import Image  # matplotlib depends on it

    picture = io.BytesIO()
    figure.savefig(picture, dpi=160)
    colours = Image.open(picture).convert("RGB")
    palette = colours.quantize(256, Image.Quantize.MAXCOVERAGE)
    palette.save(path, format="PNG", optimize=True)


if __name__ == "__main__":
    main()

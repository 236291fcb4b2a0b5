"""The figures show what the formulas say, and the command writes them."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rope_ext import plot
from rope_ext.__main__ import main
from rope_ext.frequencies import axial, mixed, standard
from rope_ext.scaling import DynamicNTK, Linear, YaRN

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = ("rotation", "similarity", "image", "scaling")
LARGEST_PICTURE = 60_000  # bytes


def mean_cosine(distance: float, frequencies: torch.Tensor) -> float:
    return np.cos(distance * frequencies.numpy()).mean()


def curves(panel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): line.get_data() for line in panel.lines}


def test_rotation_shows_cosine_and_sine_of_every_pair():
    frequencies = standard(8)
    panels = plot.rotation(frequencies, tokens=50).axes
    assert len(panels) == 4
    for panel, frequency in zip(panels, frequencies.tolist(), strict=True):
        for name, function in (("cosine", np.cos), ("sine", np.sin)):
            positions, values = curves(panel)[name]
            assert (positions[0], positions[-1]) == (0, 50)
            np.testing.assert_allclose(values, function(positions * frequency), atol=1e-15)


def test_rotation_says_how_long_a_turn_is():
    panels = plot.rotation(torch.tensor([math.pi / 50, math.pi / 5000]), tokens=50).axes
    assert [panel.texts[0].get_text() for panel in panels] == ["100 tokens", "10,000 tokens"]


def test_rotation_draws_what_is_learned():
    learned = torch.nn.Parameter(torch.tensor([0.5]))
    positions, values = curves(plot.rotation(learned, tokens=4).axes[0])["cosine"]
    np.testing.assert_allclose(values, np.cos(positions * 0.5), atol=1e-15)


def test_similarity_shows_the_mean_cosine_of_near_distances():
    series = {"small": standard(32, 100.0), "large": standard(32, 1e6)}
    shown = curves(plot.similarity(series, tokens=500).axes[0])
    for name, frequencies in series.items():
        distances, values = shown[name]
        assert (distances[0], distances[-1]) == (1, 500)
        for distance, value in zip(distances, values, strict=True):
            near = [d for d in range(1000) if distance / 1.2 <= d <= distance * 1.2]
            expected = np.mean([mean_cosine(d, frequencies) for d in near])
            assert value == pytest.approx(expected, abs=1e-12)


def test_similarity_shows_the_range_of_near_distances():
    frequencies = standard(32)
    panel = plot.similarity({"one": frequencies}, tokens=100).axes[0]
    band = panel.collections[0].get_paths()[0].vertices
    near = [mean_cosine(d, frequencies) for d in range(84, 121)]
    heights = band[band[:, 0] == 100][:, 1]
    assert heights.min() == pytest.approx(min(near), abs=1e-12)
    assert heights.max() == pytest.approx(max(near), abs=1e-12)


def test_similarity_falls_later_where_the_base_is_larger():
    series = {"small": standard(128, 100.0), "large": standard(128, 1e6)}
    shown = curves(plot.similarity(series, tokens=32768).axes[0])
    assert (shown["small"][1] < shown["large"][1]).all()


def test_image_shows_the_mean_cosine_of_a_displacement():
    matrices = {"axial": axial((8, 4)), "mixed": mixed((4, 4), heads=3)}
    panels = plot.image(matrices, reach=5).axes
    for panel, (name, matrix) in zip(panels, matrices.items(), strict=False):
        shown = panel.images[0].get_array()
        assert panel.get_title() == name
        assert shown.shape == (11, 11)
        assert shown[5, 5] == 1
        down, right = 3, -4
        angles = down * matrix[0] + right * matrix[1]
        assert shown[5 + down, 5 + right] == pytest.approx(angles.cos().mean().item(), abs=1e-12)


def test_image_labels_the_displacement():
    picture = plot.image({"": axial((4, 4))}, reach=5).axes[0].images[0]
    assert picture.get_extent() == [-5.5, 5.5, 5.5, -5.5]


def test_scaling_shows_wavelengths_and_their_ratio():
    rules = {"Linear": Linear(4.0), "YaRN": YaRN(4.0, 512), "NTK": DynamicNTK(2.0, 512)}
    frequencies = standard(32)
    above, below = plot.scaling(frequencies, rules, 512, 2048).axes
    before = 2 * math.pi / frequencies.numpy()
    np.testing.assert_allclose(curves(above)["before"][1], before, rtol=1e-15)
    for rule, line in zip(rules.items(), below.lines, strict=True):
        name, scaled = rule[0], rule[1](frequencies, 2048)[0].numpy()
        np.testing.assert_allclose(curves(above)[name][1], 2 * math.pi / scaled, rtol=1e-15)
        np.testing.assert_allclose(line.get_ydata(), frequencies.numpy() / scaled, rtol=1e-15)


def test_scaling_marks_both_contexts():
    above = plot.scaling(standard(32), {"Linear": Linear(4.0)}, 512, 2048).axes[0]
    assert [line.get_ydata()[0] for line in above.lines[2:]] == [512, 2048]
    assert [text.get_text() for text in above.texts] == ["512 tokens", "2,048 tokens"]


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plot.rotation(axial((4, 4)), 8), ValueError, r"frequencies must be \(P,\), got"),
        (lambda: plot.rotation(torch.empty(0), 8), ValueError, r"frequencies must be \(P,\), got"),
        (lambda: plot.rotation(torch.ones(2, dtype=torch.int64), 8), TypeError, "got torch.int64"),
        (lambda: plot.rotation(standard(4), 0), ValueError, "tokens must be positive, got 0"),
        (lambda: plot.similarity({"": standard(4)}, 1), ValueError, "tokens must be at least 2"),
        (lambda: plot.image({"": standard(4)}, 8), ValueError, r"\(2, P\) or \(2, H, P\), got"),
        (lambda: plot.image({"": axial((4,) * 3)}, 8), ValueError, r"got \(3, 6\)"),
        (lambda: plot.image({"": axial((4, 4))}, 0), ValueError, "reach must be positive, got 0"),
        (lambda: plot.scaling(standard(4), {}, 0, 8), ValueError, "original_context_length must"),
        (lambda: plot.scaling(standard(4), {}, 8, 0), ValueError, "context_length must be pos"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        draw()


def test_matplotlib_is_imported_on_request_only():
    code = "import sys, rope_ext.__main__; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.mark.usefixtures("without_matplotlib")
def test_missing_matplotlib_is_named():
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "rope_ext\[plot\]"'):
        plot.rotation(standard(4), 8)


@pytest.mark.usefixtures("without_matplotlib")
def test_the_command_names_missing_matplotlib(tmp_path: Path):
    with pytest.raises(SystemExit, match="needs matplotlib"):
        main(["plot", "rotation", "-o", str(tmp_path / "figure.png")])


def test_the_command_writes_a_png(tmp_path: Path):
    command = [sys.executable, "-m", "rope_ext", "plot", "rotation", "-o", tmp_path / "figure"]
    subprocess.run(command, check=True)
    with Image.open(tmp_path / "figure") as picture:
        assert picture.format == "PNG"
        assert picture.width >= 800


def test_the_command_writes_all_figures(tmp_path: Path):
    main(["plot", "all", "-o", str(tmp_path / "new" / "folder")])
    written = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert written == {f"{name}.png" for name in FIGURES}


def test_the_command_hands_on_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = {}

    def record(series: dict[str, torch.Tensor], tokens: int):
        shown.update(series, tokens=tokens)
        return plot.rotation(torch.ones(1), tokens)

    monkeypatch.setattr("rope_ext.plot.similarity", record)
    options = ["--bases", "10", "2000", "--rotary-dim", "8", "--tokens", "64"]
    main(["plot", "similarity", *options, "-o", str(tmp_path / "figure.png")])
    assert list(shown) == ["base 10", "base 2,000", "tokens"]
    assert torch.equal(shown["base 2,000"], standard(8, 2000.0))
    assert shown["tokens"] == 64


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--tokens", "0", "tokens must be positive, got 0"), ("--rotary-dim", "3", "got 3")],
)
def test_the_command_says_what_is_wrong(option: str, value: str, message: str, tmp_path: Path):
    with pytest.raises(SystemExit, match=message):
        main(["plot", "rotation", option, value, "-o", str(tmp_path / "figure.png")])


@pytest.mark.skipif(not DOCS.exists(), reason="there are no docs beside the tests")
def test_the_documentation_shows_every_figure_and_none_is_large():
    text = (DOCS / "frequencies.md").read_text()
    pictures = sorted((DOCS / "pictures").iterdir())
    assert [picture.stem for picture in pictures] == sorted(FIGURES)
    for picture in pictures:
        assert f"](pictures/{picture.name})" in text
        assert picture.stat().st_size < LARGEST_PICTURE

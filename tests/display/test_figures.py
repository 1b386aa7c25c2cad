"""Figures read back: the colours, positions and numbers that they show."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from vidpipe.data.dataset import Dataset
from vidpipe.display import figures
from vidpipe.display.colours import SCHEMES

# Colours of a cell of the confusion matrix by its fraction of the row: 0, 1/2 and 1.
NONE_OF_ROW, HALF_OF_ROW, ALL_OF_ROW = (247, 251, 255), (106, 174, 214), (8, 48, 107)


def _history(num_epochs: int, validated: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "loss": 2 / epoch,
            "accuracy": epoch / num_epochs,
            "val_loss": 1 + abs(epoch - 2) if validated else None,
            "val_loss_error": 0.5 if validated else None,
            "val_accuracy": 0.5 / epoch if validated else None,
            "learning_rate": 0.001 * epoch,
        }
        for epoch in range(1, num_epochs + 1)
    ]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved: for a page one in each scheme."""
    saved: list[Any] = []
    save = Figure.savefig

    def keep_and_save(figure: Figure, *arguments: Any, **settings: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", keep_and_save)
    return saved


@pytest.mark.parametrize(
    ("num_epochs", "selected", "validated"),
    [(1, 1, True), (3, 2, True), (30, 30, True), (300, 1, True), (1, 1, False), (5, 5, False)],
)
def test_learning_curves_show_the_history(
    saved: list[Any], tmp_path: Path, num_epochs: int, selected: int, validated: bool
) -> None:
    history = _history(num_epochs, validated)
    figures.learning_curves(history, selected, tmp_path / "curves.png")
    assert tf.io.decode_png((tmp_path / "curves.png").read_bytes()).shape == (792, 880, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    loss, accuracy, rate = saved[0].axes
    row = history[selected - 1]
    kinds = ["", "val_"] if validated else [""]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        *curves, circle, line = axes.lines
        for curve, kind in zip(curves, kinds, strict=True):
            assert curve.get_xydata().tolist() == [[row["epoch"], row[kind + name]] for row in history]
            assert curve.get_label() == (kind.rstrip("_") or "train")
        assert circle.get_xydata().tolist() == [[selected, row[kinds[-1] + name]]]
        assert line.get_xdata() == [selected, selected]
        marked = f"{kinds[-1]}{name}".replace("_", " ")
        assert axes.get_title() == f"selected epoch {selected}: {marked} {row[kinds[-1] + name]:.3f}"
        assert [text.get_text() for text in axes.get_legend().texts] == ["train", "val"][: len(kinds)]
    assert rate.lines[0].get_xydata().tolist() == [[row["epoch"], row["learning_rate"]] for row in history]
    assert all(tick == round(tick) for tick in rate.get_xticks())
    for axes in saved[0].axes:
        for curve in axes.lines[:-1]:
            assert _is_inside(curve.get_xydata(), axes)
        legend = axes.get_legend()
        assert legend is None or legend.get_window_extent().y0 >= axes.bbox.y1 - 5


def _is_inside(points: np.ndarray, axes: Any) -> bool:
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim()])
    return bool(((low <= points) & (points <= high)).all())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(_: Figure, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "curves.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", write_half)
    with pytest.raises(OSError, match="disk full"):
        figures.learning_curves(_history(2), 2, tmp_path / "curves.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("curves.png", b"old")]


def _where(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (image == colour).all(axis=-1)


def _cells(image: np.ndarray, num_classes: int) -> np.ndarray:
    """Finds the middles of the cells, whose outer ones have these colours: uint8 [C, C, n, n, 3]."""
    rows, columns = np.nonzero(_where(image, NONE_OF_ROW) | _where(image, ALL_OF_ROW))
    bounds = [np.linspace(found.min(), found.max() + 1, num_classes + 1) for found in (rows, columns)]
    size = int((bounds[0][1] - bounds[0][0]) / 2)
    top, left = ((bound[:-1] + bound[1:] - size).astype(int) // 2 for bound in bounds)
    return np.array([[image[y : y + size, x : x + size] for x in left] for y in top])


@pytest.mark.parametrize("num_classes", [2, 20, 21, 101, 150])
def test_a_confusion_matrix_can_be_read_back_from_its_image(num_classes: int) -> None:
    predicted = np.random.default_rng(num_classes).permutation(num_classes)
    counts = np.zeros((num_classes, num_classes), int)
    counts[np.arange(num_classes), predicted] = np.arange(num_classes) + 1
    image = figures.confusion_matrix_image(counts, [f"class {i}" for i in range(num_classes)])
    assert image.dtype == np.uint8
    assert image.shape[0] == image.shape[1] < 2100
    cells = _cells(image, num_classes)[:, :, 0, 0]
    assert (_where(cells, ALL_OF_ROW) == (counts > 0)).all()
    assert (_where(cells, NONE_OF_ROW) == (counts == 0)).all()


def test_colours_are_fractions_of_the_row_and_numbers_are_counts() -> None:
    few = figures.confusion_matrix_image(np.array([[1, 1, 0], [0, 0, 0], [0, 0, 4]]), "abc")
    many = figures.confusion_matrix_image(np.array([[70, 70, 0], [0, 0, 0], [0, 0, 9]]), "abc")
    expected = [[HALF_OF_ROW, HALF_OF_ROW, NONE_OF_ROW], [NONE_OF_ROW] * 3, [NONE_OF_ROW] * 2 + [ALL_OF_ROW]]
    cells, others = _cells(few, 3), _cells(many, 3)
    for found in (cells, others):
        np.testing.assert_allclose(found[:, :, 0, 0], expected, atol=2)
        assert (found[1] == NONE_OF_ROW).all()
        # White numbers on dark cells, black ones on light cells.
        assert found[2, 2].min(axis=-1).max() > 200
        assert found[0, 0].max(axis=-1).min() < 60
    assert (cells != others).any(axis=(2, 3, 4)).tolist() == [
        [True, True, False],
        [False] * 3,
        [False, False, True],
    ]


def test_a_confusion_matrix_of_many_classes_has_no_numbers() -> None:
    names = [str(i) for i in range(21)]
    images = [figures.confusion_matrix_image(np.eye(21, dtype=int) * count, names) for count in (1, 8)]
    assert (images[0] == images[1]).all()


def test_class_names_are_drawn_as_they_are() -> None:
    counts = np.eye(2, dtype=int)
    dollars = figures.confusion_matrix_image(counts, ["$\\frac$", "b"])
    assert (dollars != figures.confusion_matrix_image(counts, ["$\\frbc$", "b"])).any()
    assert figures.confusion_matrix_image(counts, ["a" * 1000, "b"]).shape[0] < 500


def test_long_names_are_shortened_in_the_middle() -> None:
    assert figures._short("x" * 32) == "x" * 32
    assert (
        figures._short("abcdefghijklmnopqrstuvwxyz0123456") == "abcdefghijklmnop…" + "stuvwxyz0123456"[-15:]
    )


BINS: list[dict[str, Any]] = [
    {"low": 0, "high": 0.5, "num_clips": 0, "accuracy": None, "accuracy_ci95": None, "confidence": None},
    {
        "low": 0.5,
        "high": 1,
        "num_clips": 4,
        "accuracy": 0.75,
        "accuracy_ci95": [0.3, 0.95],
        "confidence": 0.9,
    },
]
CURVES = {
    index: np.array([[1, 0.5, 0], [0.1 + index / 20, 0.9, 1]])
    for index in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11]
}


def test_precision_recall_curves_have_the_colours_of_their_names(saved: list[Any]) -> None:
    named = [11, 3, 0, 1, 2, 10, 4, 5]
    figures.precision_recall_picture(CURVES, named)
    for figure, colours in zip(saved, SCHEMES.values(), strict=True):
        lines = figure.axes[0].lines
        grey, coloured = lines[:3], lines[3:]
        assert [to_hex(line.get_color()) for line in grey] == [colours["line"]] * 3
        for line, index in zip(lines, [6, 7, 8, *named], strict=True):
            np.testing.assert_array_equal(line.get_xydata(), CURVES[index].T)
            assert line.get_drawstyle() == "steps-post"
        assert [to_hex(line.get_color()) for line in coloured] == [colours[f"series-{i}"] for i in range(8)]
        assert [line.get_linestyle() for line in coloured] == ["-"] * 4 + ["--"] * 4
        orders = [line.get_zorder() for line in [*coloured, *grey]]
        assert orders == sorted(orders, reverse=True)


def test_the_reliability_diagram_shows_its_bins(saved: list[Any]) -> None:
    figures.reliability_picture(BINS)
    for figure in saved:
        axes, counts = figure.axes
        diagonal, points = axes.lines[:2]
        assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
        assert points.get_xydata().tolist() == [[0.9, 0.75]]
        (error_bar,) = axes.collections[0].get_segments()
        np.testing.assert_allclose(error_bar, [[0.9, 0.3], [0.9, 0.95]])
        bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in counts.patches]
        assert bars == [(0, 0.5, 0), (0.5, 0.5, 4)]


def test_a_confusion_matrix_for_a_page_has_its_colours(saved: list[Any]) -> None:
    counts = np.zeros((21, 21), int)
    counts[0, :2], counts[2, 2] = (1, 99), 7
    figures.confusion_matrix_picture(counts, [f"class {i}" for i in range(21)])
    for figure, colours in zip(saved, SCHEMES.values(), strict=True):
        (image,) = figure.axes[0].images
        shown = image.cmap(image.norm(image.get_array()))
        assert to_hex(shown[0, 5]) == to_hex(shown[1, 1]) == colours["card"]
        assert to_hex(shown[2, 2]) == colours["series-0"]
        assert image.norm(0.01) == pytest.approx(0.1)


_PICTURES: list[Callable[[], figures.Picture]] = [
    lambda: figures.learning_curves_picture(_history(3), 2),
    lambda: figures.precision_recall_picture(CURVES, [0]),
    lambda: figures.reliability_picture(BINS),
    lambda: figures.confusion_matrix_picture(np.eye(21, dtype=int), ["跳水 $"] * 21),
]


@pytest.mark.parametrize("draw", _PICTURES)
@pytest.mark.filterwarnings("error")
def test_pictures_have_both_schemes_and_are_reproducible(
    draw: Callable[[], figures.Picture], saved: list[Any]
) -> None:
    picture = draw()
    width, height = saved[0].get_size_inches() * 96
    assert (picture.width, picture.height) == (round(width), round(height))
    for svg, scheme in ((picture.light, "light"), (picture.dark, "dark")):
        text = svg.decode()
        assert text.rstrip().endswith("</svg>")
        for each, colours in SCHEMES.items():
            assert (colours["card"] in text) == (colours["muted"] in text) == (each == scheme)
        assert "dc:date" not in text
    assert draw() == picture


@pytest.fixture(scope="module")
def clips() -> tuple[np.ndarray, np.ndarray]:
    """Three clips of 20, 1 and 3 real frames; frame i of clip n has the colour (i, n, 77)."""
    frames = np.full((3, 20, 32, 32, 3), 77, np.uint8)
    frames[..., 0] = np.arange(20)[:, np.newaxis, np.newaxis]
    frames[..., 1] = np.arange(3)[:, np.newaxis, np.newaxis, np.newaxis]
    return frames, np.arange(20) < np.array([[20], [1], [3]])


_ABOVE = 16  # pixels, for the frame numbers of the first row


def _draw(clips: tuple[np.ndarray, np.ndarray], titles: list[str], wrong: list[bool]) -> np.ndarray:
    image = figures.predicted_clips_image(*clips, titles, wrong)
    assert image.dtype == np.uint8
    assert image.shape == (_ABOVE + 3 * 132, 1320, 3)
    assert (image[:_ABOVE] < 128).any()
    return image[_ABOVE:]


def test_each_row_shows_the_real_frames_of_its_clip(clips: tuple[np.ndarray, np.ndarray]) -> None:
    image = _draw(clips, ["", "", ""], [False] * 3)
    for clip, expected in enumerate([[0, 3, 5, 8, 11, 14, 16, 19], [0], [0, 1, 2]]):
        row = image[clip * 132 : (clip + 1) * 132]
        shown = row[row[..., 2] == 77]
        colours, counts = np.unique(shown, axis=0, return_counts=True)
        assert colours[counts > 5000].tolist() == [[index, clip, 77] for index in expected]
        first = [np.nonzero(_where(row, (index, clip, 77)))[1].min() for index in expected]
        assert first == sorted(first)


def test_titles_are_left_of_their_row_and_wrong_ones_are_red(clips: tuple[np.ndarray, np.ndarray]) -> None:
    blank = _draw(clips, ["", "", ""], [False] * 3)
    titled = _draw(clips, ["", "Punch, predicted PushUps 0.81", ""], [True] * 3)
    rows, columns = np.nonzero((blank != titled).any(axis=-1))
    assert 132 <= rows.min() < rows.max() < 2 * 132
    assert columns.max() < 341
    assert _has_red(titled[132 : 2 * 132, :341])
    correct = _draw(clips, ["", "Punch, predicted PushUps 0.81", ""], [True, False, True])
    assert not _has_red(correct[:, :341])
    assert (correct[132 : 2 * 132, :341] < 128).all(axis=-1).any()


def _has_red(image: np.ndarray) -> bool:
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return bool(((red > green + 64) & (red > blue + 64)).any())


def test_long_titles_are_wrapped_and_dollar_signs_are_no_formula(
    clips: tuple[np.ndarray, np.ndarray],
) -> None:
    title = "a folder of many names/" * 3 + "$\\frac$"
    image = _draw(clips, [title, "", ""], [False] * 3)
    assert (image[:, :5] == 255).all()
    assert not (image[:132, 5:341] == 255).all()


def test_no_figure_stays_in_memory(clips: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    _draw(clips, ["", "", ""], [False] * 3)
    figures.confusion_matrix_image(np.eye(3, dtype=int), "abc")
    figures.learning_curves(_history(2), 2, tmp_path / "curves.png")
    figures.reliability_picture(BINS)
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found) is Figure]


def test_a_contact_sheet_shows_some_clips_of_each_split(
    dataset: Dataset, saved: list[Any], tmp_path: Path
) -> None:
    """A row for each of 6 train, 2 val and 6 test clips; brightness tells the index of a frame."""
    figures.contact_sheet(dataset, tmp_path / "sheet.png")
    image = tf.io.decode_png((tmp_path / "sheet.png").read_bytes())
    assert image.shape == (_ABOVE + 14 * 132, 1320, 4)
    rows = np.reshape(saved[0].axes, (14, 8))
    shown = [(split, row) for split in ("train", "val", "test") for row in dataset.clip_rows(split)[:6]]
    for axes, (split, clip) in zip(rows, shown, strict=True):
        (title,) = axes[0].texts
        assert title.get_text() == f"{split}: {clip['label']}\n{clip['video_id']}"
        frames = [each.images[0].get_array() for each in axes if each.images]
        assert len(frames) == int(clip["frames_kept"])
        brightness = [frame.mean() for frame in frames]
        assert brightness == sorted(brightness)

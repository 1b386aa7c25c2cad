"""Figures: PNG files, images for TensorBoard and SVG for pages; the only importer of Matplotlib.

Figures are drawn without pyplot, which keeps every figure in memory until it is closed, and opens windows.
"""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler  # comes with Matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from vidpipe.config import SPLITS
from vidpipe.data import input_pipeline
from vidpipe.data.dataset import Dataset
from vidpipe.data.sampling import clock
from vidpipe.display.colours import SCHEMES
from vidpipe.display.fonts import in_any_script
from vidpipe.storage import files

_DPI = 110
_CLIPS_PER_SPLIT = 6
_FRAMES_PER_CLIP = 8
_TITLE_CHARACTERS, _NAME_CHARACTERS = 50, 32
_MARK_COLOUR = "0.45"
_SQUARE = (4.8, 4.8)  # inches, of a figure that stands beside another
_SOLID_SERIES = 4
_NUMBERED_CLASSES = 20
_TIMELINE_CLASSES = 10
_LINE_STYLES = ("-", "--", "-.", ":")
_DOTTED_EPOCHS, _DOTTED_WINDOWS = 40, 60
# Seconds between the ticks of a time axis.
_CLOCK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
# Inches: a cell that shows its count, a smaller cell, and the side of the matrix from which cells shrink.
_NUMBERED_CELL, _NAMED_CELL, _LARGEST_MATRIX = 0.42, 0.13, 16.0


@dataclass(frozen=True)
class Picture:
    """A figure for a page: an SVG in each of `colours.SCHEMES`, and its size in CSS pixels."""

    light: bytes
    dark: bytes
    width: int
    height: int


def contact_sheet(dataset: Dataset, path: Path) -> None:
    """Writes a PNG of the first clips of each split, one per row: some of its frames, label and video_id."""
    clips = []
    for split in SPLITS:
        if dataset.num_clips(split) == 0:
            continue
        rows = dataset.clip_rows(split)[:_CLIPS_PER_SPLIT]
        batches = input_pipeline.eval_dataset(
            dataset, batch_size=len(rows), split=split, num_frames=dataset.clip.num_frames
        )
        ((inputs, _, _), *_) = batches.take(1)
        for row, frames, mask in zip(rows, inputs["frames"].numpy(), inputs["mask"].numpy(), strict=True):
            clips.append((f"{split}: {row['label']}\n{row['video_id']}", "black", frames[mask]))
    _write_png(_clip_rows(clips), path)


def predicted_clips_image(
    frames: np.ndarray, mask: np.ndarray, titles: Sequence[str], wrong: Sequence[bool]
) -> np.ndarray:
    """Draws classified clips, one per row: up to 8 frames and a title.

    Args:
      frames: uint8 [N, T, H, W, 3], RGB, N >= 1.
      mask: bool [N, T], True for the real frames, at least one per clip; the others are not drawn.
      titles: N texts, such as "Punch, predicted PushUps 0.81".
      wrong: N flags; the titles of wrong predictions are red.

    Returns:
      uint8 [H', W', 3], RGB.
    """
    clips = [
        (title, "firebrick" if is_wrong else "black", clip[real])
        for title, is_wrong, clip, real in zip(titles, wrong, frames, mask, strict=True)
    ]
    return _pixels(_clip_rows(clips))


def confusion_matrix_image(counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix; a darker cell is a larger fraction of its row.

    Cells show their counts up to 20 classes; of very many classes only every second, third ... is named.

    Args:
      counts: int [C, C], rows are true classes, columns predicted ones.
      classes: the C names.

    Returns:
      uint8 [H, W, 3], RGB; its sides grow with the number of classes, up to about 2100 pixels.
    """
    return _pixels(_confusion_figure(counts, classes, "Blues", Normalize(0, 1)))


def confusion_matrix_picture(counts: np.ndarray, classes: Sequence[str]) -> Picture:
    """Draws `confusion_matrix_image` for a page; small fractions are easier to see."""

    def draw(colours: Mapping[str, str]) -> Figure:
        colour_map = LinearSegmentedColormap.from_list("", [colours["card"], colours["series-0"]])
        return _confusion_figure(counts, classes, colour_map, PowerNorm(0.5, 0, 1))

    return _in_both_schemes(draw)


def _confusion_figure(
    counts: np.ndarray, classes: Sequence[str], colour_map: str | Colormap, norm: Normalize
) -> Figure:
    num_classes = len(classes)
    numbered = num_classes <= _NUMBERED_CLASSES
    side = min(num_classes * (_NUMBERED_CELL if numbered else _NAMED_CELL), _LARGEST_MATRIX)
    names = [_short(name) for name in classes]
    font_size = 8.0 if numbered else 6.5
    # A character is about 0.6 of its font size wide, and 72 points are an inch.
    margin = 0.5 + max(map(len, names)) * font_size * 0.6 / 72
    total = margin + side + 0.1
    figure = Figure((total, total), _DPI)
    axes = figure.add_axes((margin / total, 0.1 / total, side / total, side / total))
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(fractions, cmap=colour_map, norm=norm, interpolation="none")
    named = range(0, num_classes, math.ceil(num_classes * _NAMED_CELL / _LARGEST_MATRIX))
    for set_ticks, rotation in ((axes.set_xticks, 90), (axes.set_yticks, 0)):
        # Without parse_math=False, dollar signs in a name would begin a formula.
        set_ticks(named, [names[i] for i in named], fontsize=font_size, rotation=rotation, parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_color(_MARK_COLOUR)
    if numbered:
        for (row, column), count in np.ndenumerate(counts):
            if count > 0:
                colour = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, count, color=colour, fontsize=7, ha="center", va="center")
    return figure


def learning_curves(history: Sequence[Mapping[str, Any]], selected: int, path: Path) -> None:
    """Writes a PNG of a run: loss, accuracy and learning rate over the epochs, the selected one marked.

    Args:
      history: a row per epoch, at least one, with `epoch`, `loss`, `accuracy`, `val_loss`, `val_loss_error`,
        `val_accuracy` and `learning_rate`; without a validation split, those of validation are None.
      selected: the number of the selected epoch.
      path: of the PNG file, which is written atomically.
    """
    _write_png(_learning_figure(history, selected, (8, 7.2)), path)


def learning_curves_picture(history: Sequence[Mapping[str, Any]], selected: int) -> Picture:
    """Draws `learning_curves` for a page."""
    return _in_both_schemes(lambda _: _learning_figure(history, selected, (6.6, 6)))


def precision_recall_picture(curves: Mapping[int, np.ndarray], named: Sequence[int]) -> Picture:
    """Draws precision-recall curves.

    Args:
      curves: class index to recall and precision, float [2, n], recall descending.
      named: at most 8 of these classes, the worst first; they have the colours series-0, series-1, ... and,
        from the fifth on, dashed lines; the others are grey.
    """

    def draw(colours: Mapping[str, str]) -> Figure:
        figure = Figure(_SQUARE, layout="constrained")
        axes = figure.subplots()
        for index, curve in curves.items():
            if index not in named:
                axes.plot(*curve, drawstyle="steps-post", color=colours["line"], linewidth=0.8)
        for rank, index in enumerate(named):
            (line,) = axes.plot(*curves[index], drawstyle="steps-post", color=colours[f"series-{rank}"])
            line.set(linestyle="--" if rank >= _SOLID_SERIES else "-", clip_on=False)
            line.set_zorder(3 + len(named) - rank)  # the worst classes on top
        axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        _add_grid(axes)
        return figure

    return _in_both_schemes(draw)


def reliability_picture(bins: Sequence[Mapping[str, Any]]) -> Picture:
    """Draws a reliability diagram: accuracy with its interval over confidence, and a histogram of confidence.

    Args:
      bins: in ascending order, each with `low`, `high` and `num_clips`, and, unless that is 0, `accuracy`,
        `accuracy_ci95` and `confidence` (its mean).
    """

    def draw(colours: Mapping[str, str]) -> Figure:
        figure = Figure(_SQUARE, layout="constrained")
        axes, counts = figure.subplots(2, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
        axes.plot([0, 1], [0, 1], color=colours["muted"], linewidth=1, linestyle=":")
        filled = [row for row in bins if row["num_clips"] > 0]
        accuracy = np.array([row["accuracy"] for row in filled])
        arms = np.abs(np.array([row["accuracy_ci95"] for row in filled]).T - accuracy)
        confidence = [row["confidence"] for row in filled]
        axes.errorbar(confidence, accuracy, arms, fmt="o", markersize=5, capsize=3, color="C0", clip_on=False)
        axes.set(ylabel="Accuracy", ylim=(0, 1), xlim=(0, 1))
        low, high = ([row[side] for row in bins] for side in ("low", "high"))
        counts.bar(low, [row["num_clips"] for row in bins], np.subtract(high, low), align="edge",
                   color="C0", edgecolor=colours["card"])  # fmt: skip
        counts.set(xlabel="Confidence", ylabel="Clips")
        counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        for each in (axes, counts):
            _add_grid(each)
        return figure

    return _in_both_schemes(draw)


def _in_both_schemes(draw: Callable[[Mapping[str, str]], Figure]) -> Picture:
    """Draws a figure in each scheme; `draw` gets its colours, which are also set as Matplotlib's defaults."""
    drawn = {}
    for scheme, colours in SCHEMES.items():
        series = [colour for name, colour in colours.items() if name.startswith("series-")]
        settings = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), colours["ink"])
        settings |= dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), colours["muted"])
        settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), colours["card"])
        # Ids in an SVG are random without a salt.
        settings |= {"grid.color": colours["line"], "svg.hashsalt": "vidpipe"}
        with mpl.rc_context(settings | {"axes.prop_cycle": cycler(color=series)}):
            figure, svg = draw(colours), io.BytesIO()
            with in_any_script(figure):
                figure.savefig(svg, format="svg", metadata={"Date": None})
        drawn[scheme] = svg.getvalue()
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Picture(drawn["light"], drawn["dark"], width, height)


def _learning_figure(
    history: Sequence[Mapping[str, Any]], selected: int, size: tuple[float, float]
) -> Figure:
    (at_selected,) = (row for row in history if row["epoch"] == selected)
    has_val = at_selected["val_loss"] is not None
    figure = Figure(size, _DPI, layout="constrained")
    loss_axes, accuracy_axes, rate_axes = figure.subplots(
        3, sharex=True, gridspec_kw={"height_ratios": [4, 4, 1.2]}
    )
    for axes, name in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
        _draw_curve(axes, history, name, "C0", "train")
        if has_val:
            _draw_curve(axes, history, f"val_{name}", "C1", "val")
        marked = f"val_{name}" if has_val else name
        ring: dict[str, Any] = {"markersize": 9, "fillstyle": "none", "clip_on": False}
        axes.plot(at_selected["epoch"], at_selected[marked], "o", color=mpl.rcParams["text.color"], **ring)
        value = f"{marked.replace('_', ' ')} {at_selected[marked]:.3f}"
        axes.set_title(name.capitalize(), loc="left")
        axes.set_title(f"selected epoch {selected}: {value}", fontsize=9)
        # Above the axes, where it hides no curve.
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, frameon=False)
    accuracy_axes.set_ylim(top=1.02)
    _draw_curve(rate_axes, history, "learning_rate", "C2")
    highest = max(row["learning_rate"] for row in history)
    rate_axes.set_yticks([0, highest], ["0", f"{highest:.2g}"])
    rate_axes.set_title("Learning rate", loc="left", fontsize=9)
    rate_axes.set_xlabel("Epoch")
    rate_axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    margin = max(0.5, 0.02 * len(history))
    rate_axes.set_xlim(history[0]["epoch"] - margin, history[-1]["epoch"] + margin)
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
        axes.axvline(at_selected["epoch"], color=_MARK_COLOUR, linewidth=1, linestyle=":")
        _add_grid(axes)
    return figure


def _add_grid(axes: Axes) -> None:
    axes.grid(linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)  # else lines of the grid cross the bars
    axes.spines[["top", "right"]].set_visible(False)


def timeline(
    bounds: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], title: str, path: Path
) -> None:
    """Writes a PNG of class probabilities over the time of a video, above a strip of the predicted classes.

    It shows up to 10 classes that are predicted in some window, the most frequent first; in the strip,
    windows of other classes are grey. A circle marks the highest probability of each class; the legend gives
    its value and time.

    Args:
      bounds: float [N, 2], N >= 1, start and end of each window in seconds, ascending.
      probabilities: float [N, C].
      classes: the C names.
      title: such as the video's path.
      path: of the PNG file, which is written atomically.
    """
    predicted = probabilities.argmax(axis=1)
    counts = np.bincount(predicted, minlength=len(classes))
    found = [index for index in np.argsort(-counts, kind="stable") if counts[index] > 0]
    drawn = found[:_TIMELINE_CLASSES]
    figure = Figure((12, 4.8), _DPI, layout="constrained")
    axes, strip = figure.subplots(2, sharex=True, gridspec_kw={"height_ratios": [9, 1]})
    middles = bounds.mean(axis=1)
    until = np.append(bounds[1:, 0], bounds[-1, 1])  # a prediction holds until the next window starts
    for rank, index in enumerate(drawn):
        curve, colour = probabilities[:, index], f"C{rank}"
        peak = curve.argmax()
        label = f"{curve[peak]:.2f} at {clock(middles[peak])}  {_short(classes[index])}"
        # Dots show few windows one by one; a single window makes no line.
        marker = "." if len(bounds) <= _DOTTED_WINDOWS else ""
        style = _LINE_STYLES[rank % len(_LINE_STYLES)]
        axes.plot(middles, curve, colour, linestyle=style, marker=marker, label=label)
        axes.plot(middles[peak], curve[peak], "o", color=colour, markersize=9, fillstyle="none")
        of_class = predicted == index
        spans = np.stack([bounds[of_class, 0], until[of_class] - bounds[of_class, 0]], axis=1)
        strip.broken_barh(spans, (0, 1), color=colour, linewidth=0)
    axes.set_title(title[-_TITLE_CHARACTERS * 2 :], loc="left", fontsize=10, parse_math=False)
    axes.set_ylabel("probability")
    axes.set_ylim(-0.02, 1.04)
    _add_grid(axes)
    others = len(found) - len(drawn)
    legend = axes.legend(
        title="highest probability" + (f" ({others} more classes not drawn)" if others else ""),
        loc="upper left", bbox_to_anchor=(1, 1.03), frameon=False, fontsize=9, alignment="left",
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    strip.set_yticks([0.5], ["predicted"])
    strip.tick_params(left=False)
    strip.set_facecolor("0.9")
    strip.spines[:].set_visible(False)
    duration = bounds[-1, 1] - bounds[0, 0]
    step = next(step for step in _CLOCK_STEPS if duration / step <= 12 or step == _CLOCK_STEPS[-1])
    strip.xaxis.set_major_locator(MultipleLocator(step))
    strip.xaxis.set_major_formatter(FuncFormatter(lambda moment, _: clock(moment)))
    strip.set_xlim(bounds[0, 0], bounds[-1, 1])
    strip.set_xlabel("time, minutes:seconds")
    _write_png(figure, path)


def _draw_curve(
    axes: Axes, history: Sequence[Mapping[str, Any]], column: str, colour: str, label: str | None = None
) -> None:
    # Dots show few epochs one by one; a single epoch makes no line.
    marker = "." if len(history) <= _DOTTED_EPOCHS else ""
    epochs, values = [row["epoch"] for row in history], [row[column] for row in history]
    axes.plot(epochs, values, color=colour, label=label, marker=marker)


def _clip_rows(clips: Sequence[tuple[str, str, np.ndarray]]) -> Figure:
    """Draws a row per clip (title, colour of the title, frames uint8 [n, H, W, 3], n >= 1): some frames."""
    above = 0.15  # inches, for the frame numbers of the first row
    size = (1.1 * _FRAMES_PER_CLIP + 3.2, 1.2 * len(clips) + above)
    figure = Figure(size, _DPI)
    grid = figure.subplots(len(clips), _FRAMES_PER_CLIP, squeeze=False)
    for row, (title, colour, frames) in zip(grid, clips, strict=True):
        chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES_PER_CLIP).round().astype(int))
        for axes in row:
            axes.set_axis_off()
        for axes, index in zip(row, chosen, strict=False):
            axes.imshow(frames[index])
            axes.set_title(str(index), fontsize=6, pad=1)
        lines = "\n".join(textwrap.fill(line, _TITLE_CHARACTERS) for line in title.splitlines())
        text = row[0].text(-0.1, 0.5, lines, transform=row[0].transAxes, ha="right", va="center", fontsize=7)
        text.set(color=colour, parse_math=False)
    top = 1 - above / size[1]
    figure.subplots_adjust(left=3.1 / size[0], right=0.995, top=top, bottom=0.005, wspace=0.03, hspace=0.2)
    return figure


def _short(name: str) -> str:
    """Shortens a long name in its middle, since long names often begin alike."""
    if len(name) <= _NAME_CHARACTERS:
        return name
    half = (_NAME_CHARACTERS - 1) // 2
    return f"{name[: _NAME_CHARACTERS - 1 - half]}…{name[-half:]}"


def _write_png(figure: Figure, path: Path) -> None:
    with files.staged(path) as temporary, in_any_script(figure):
        figure.savefig(temporary, format="png")


def _pixels(figure: Figure) -> np.ndarray:
    """Renders a figure: uint8 [H, W, 3], RGB."""
    canvas = FigureCanvasAgg(figure)
    with in_any_script(figure):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

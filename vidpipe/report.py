"""Pictures to look at: the only importer of matplotlib.

Figures are drawn without pyplot, which would keep each until it is closed, and choose a window to show it in.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from vidpipe import input_pipeline, shards
from vidpipe.sampling import clock
from vidpipe.spec import SPLITS

_DPI = 110
_CLIPS_PER_SPLIT = 6
_FRAMES_PER_CLIP = 8
_TITLE_CHARACTERS, _NAME_CHARACTERS = 50, 32
_MARK_COLOUR = "0.45"
_NUMBERED_CLASSES = 20
_TIMELINE_CLASSES = 10
_LINE_STYLES = ("-", "--", "-.", ":")
# Seconds between the marks of a time axis.
_CLOCK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
# Inches: a cell with a number, a cell with room for its name, and the side from which cells shrink.
_NUMBERED_CELL, _NAMED_CELL, _LARGEST_MATRIX = 0.42, 0.13, 16.0


def contact_sheet(data_dir: str, path: Path) -> None:
    """Writes a PNG of the first clips of each split: a row each, some frames, label and name."""
    info = shards.read_info(data_dir)
    clips = []
    for split in SPLITS:
        if info.num_clips(split) == 0:
            continue
        rows = shards.clip_rows(data_dir, split)[:_CLIPS_PER_SPLIT]
        ((inputs, _, _), *_) = input_pipeline.eval_dataset(data_dir, info, len(rows), split).take(1)
        for row, frames, mask in zip(rows, inputs["frames"].numpy(), inputs["mask"].numpy(), strict=True):
            clips.append((f"{split}: {row['label']}\n{row['video_id']}", "black", frames[mask]))
    _write_png(_clip_rows(clips), path)


def predicted_clips_image(
    frames: np.ndarray, mask: np.ndarray, titles: Sequence[str], wrong: Sequence[bool]
) -> np.ndarray:
    """Draws what a model says of some clips: a row each, up to 8 frames and a title.

    Args:
      frames: uint8 [N, T, H, W, 3], RGB, N >= 1.
      mask: bool [N, T], True for at least one frame of each clip; the others are not drawn.
      titles: N, such as "Punch, predicted PushUps 0.81".
      wrong: N; the titles of wrong predictions are red.

    Returns:
      uint8 [H', W', 3], RGB.
    """
    clips = [
        (title, "firebrick" if is_wrong else "black", clip[real])
        for title, is_wrong, clip, real in zip(titles, wrong, frames, mask, strict=True)
    ]
    return _pixels(_clip_rows(clips))


def confusion_matrix_image(counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix, the darker a cell the larger its share of the row.

    Up to 20 classes the counts stand in the cells; of very many classes every second, third ... is named.

    Args:
      counts: int [C, C], rows are true classes, columns predicted ones.
      classes: the C names.

    Returns:
      uint8 [H, W, 3], RGB, larger for more classes and at most some 2100 pixels a side.
    """
    num_classes = len(classes)
    numbered = num_classes <= _NUMBERED_CLASSES
    side = min(num_classes * (_NUMBERED_CELL if numbered else _NAMED_CELL), _LARGEST_MATRIX)
    names = [name[:_NAME_CHARACTERS] for name in classes]
    font_size = 8.0 if numbered else 6.5
    # A letter is some 0.6 of its font size wide, and 72 points are an inch.
    margin = 0.5 + max(map(len, names)) * font_size * 0.6 / 72
    whole = margin + side + 0.1
    figure = Figure((whole, whole), _DPI)
    axes = figure.add_axes((margin / whole, 0.1 / whole, side / whole, side / whole))
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    named = range(0, num_classes, math.ceil(num_classes * _NAMED_CELL / _LARGEST_MATRIX))
    for set_ticks, rotation in ((axes.set_xticks, 90), (axes.set_yticks, 0)):
        # parse_math: a dollar sign in a name is one.
        set_ticks(named, [names[i] for i in named], fontsize=font_size, rotation=rotation, parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel("predicted", color=_MARK_COLOUR)
    axes.set_ylabel("true", color=_MARK_COLOUR)
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_color(_MARK_COLOUR)
    if numbered:
        for (row, column), count in np.ndenumerate(counts):
            if count > 0:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, count, color=colour, fontsize=7, ha="center", va="center")
    return _pixels(figure)


def learning_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG of a run: loss, accuracy and learning rate over the epochs, the best epoch marked.

    The best epoch is that of the lowest validation loss, and without validation the last: the one whose
    weights the run keeps.

    Args:
      history: a row per epoch, at least one, with `epoch`, `loss`, `accuracy`, `val_loss`, `val_accuracy` and
        `learning_rate`; without a validation split `val_loss` and `val_accuracy` are None.
      path: where the PNG goes; it appears there when it is whole.
    """
    has_val = history[-1]["val_loss"] is not None
    best = min(history, key=lambda row: row["val_loss"]) if has_val else history[-1]
    figure = Figure((8, 7.2), _DPI, layout="constrained")
    loss_axes, accuracy_axes, rate_axes = figure.subplots(
        3, sharex=True, gridspec_kw={"height_ratios": [4, 4, 1.2]}
    )
    for axes, name in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
        _draw_curve(axes, history, name, "tab:blue", "train")
        if has_val:
            _draw_curve(axes, history, f"val_{name}", "tab:orange", "val")
        marked = f"val_{name}" if has_val else name
        axes.plot(best["epoch"], best[marked], "o", markersize=9, fillstyle="none", color="black")
        which = f"{'best' if has_val else 'last'} epoch {best['epoch']}"
        axes.set_title(name.capitalize(), loc="left")
        axes.set_title(f"{which}: {marked.replace('_', ' ')} {best[marked]:.3f}", fontsize=9)
        # Above the panel, where it hides no curve.
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, frameon=False)
    accuracy_axes.set_ylim(top=1.02)
    _draw_curve(rate_axes, history, "learning_rate", "tab:green")
    highest = max(row["learning_rate"] for row in history)
    rate_axes.set_yticks([0, highest], ["0", f"{highest:.2g}"])
    rate_axes.set_title("Learning rate", loc="left", fontsize=9)
    rate_axes.set_xlabel("Epoch")
    rate_axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    beside = max(0.5, 0.02 * len(history))
    rate_axes.set_xlim(history[0]["epoch"] - beside, history[-1]["epoch"] + beside)
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
        axes.axvline(best["epoch"], color=_MARK_COLOUR, linewidth=1, linestyle=":")
        axes.grid(linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    _write_png(figure, path)


def timeline(
    bounds: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], title: str, path: Path
) -> None:
    """Writes a PNG of class probabilities over a video's time, and below them which class leads when.

    Drawn are classes that lead in some window, at most 10, those first that lead in most; in the strip the
    others are grey. The legend says where each has its peak, which is ringed.

    Args:
      bounds: float [N, 2], N >= 1, where the windows start and end, seconds, ascending.
      probabilities: float [N, C].
      classes: the C names.
      title: such as the video's path.
      path: where the PNG goes; it appears there when it is whole.
    """
    leading = probabilities.argmax(axis=1)
    counts = np.bincount(leading, minlength=len(classes))
    leaders = [index for index in np.argsort(-counts, kind="stable") if counts[index] > 0]
    drawn = leaders[:_TIMELINE_CLASSES]
    figure = Figure((12, 4.8), _DPI, layout="constrained")
    axes, strip = figure.subplots(2, sharex=True, gridspec_kw={"height_ratios": [9, 1]})
    middles = bounds.mean(axis=1)
    until = np.append(bounds[1:, 0], bounds[-1, 1])  # a class leads until the next window starts
    for place, index in enumerate(drawn):
        curve, colour = probabilities[:, index], f"C{place}"
        peak = curve.argmax()
        label = f"{curve[peak]:.2f} at {clock(middles[peak])}  {classes[index][:_NAME_CHARACTERS]}"
        # A few windows are dots that can be told apart, and one makes no line.
        marker = "." if len(bounds) <= 60 else ""
        axes.plot(middles, curve, colour, linestyle=_LINE_STYLES[place % 4], marker=marker, label=label)
        axes.plot(middles[peak], curve[peak], "o", color=colour, markersize=9, fillstyle="none")
        led = leading == index
        strip.broken_barh(
            np.stack([bounds[led, 0], until[led] - bounds[led, 0]], axis=1), (0, 1), color=colour, linewidth=0
        )
    axes.set_title(title[-_TITLE_CHARACTERS * 2 :], loc="left", fontsize=10, parse_math=False)
    axes.set_ylabel("probability")
    axes.set_ylim(-0.02, 1.04)
    axes.grid(linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    unseen = len(leaders) - len(drawn)
    legend = axes.legend(
        title="highest" + (f" (and {unseen} more that lead)" if unseen else ""),
        loc="upper left", bbox_to_anchor=(1, 1.03), frameon=False, fontsize=9, alignment="left",
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    strip.set_yticks([0.5], ["leads"])
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
    # One epoch makes no line, and many dots make no curve.
    marker = "." if len(history) <= 40 else ""
    epochs, values = [row["epoch"] for row in history], [row[column] for row in history]
    axes.plot(epochs, values, color=colour, label=label, marker=marker)


def _clip_rows(clips: Sequence[tuple[str, str, np.ndarray]]) -> Figure:
    """A row per clip: its title, in a colour, and some of its frames, uint8 [n, H, W, 3], n >= 1."""
    above = 0.15  # the first row's frame numbers, inches
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


def _write_png(figure: Figure, path: Path) -> None:
    with shards.staged(path) as temporary:
        figure.savefig(temporary, format="png")


def _pixels(figure: Figure) -> np.ndarray:
    """What a figure looks like: uint8 [H, W, 3], RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

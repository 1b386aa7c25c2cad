"""A comparison of runs as text for a terminal, as an HTML page and as a CSV file."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from vidpipe.display import page
from vidpipe.evaluation.compare import CompareError, Comparison, Method, Pair
from vidpipe.evaluation.significance import BOOTSTRAP_SAMPLES
from vidpipe.storage import files

_TEXT_COLUMNS = ("run", "method", "differs in")
_LINE_WIDTH = 100


def text(comparison: Comparison) -> str:
    """Formats a comparison as tables for a terminal."""
    baseline = comparison.runs[0]
    lines = [
        f"Accuracy on the {comparison.split} split, {len(baseline.labels)} clips:",
        "",
        *_aligned(_run_rows(comparison)),
        "",
        f"Differences to the baseline {baseline.name} on the same clips, in percentage points:",
        "",
        *_aligned(_pair_rows(comparison.pairs)),
    ]
    if comparison.methods:
        name = comparison.methods[0].name
        lines += [
            "",
            f"Methods (runs that differ only in the seed), differences to the mean of {name}:",
            "",
            *_aligned(_method_rows(comparison.methods)),
        ]
    num_clips = f"{len(comparison.disagreements)} of {len(baseline.labels)} clips"
    lines += ["", f"The runs disagree on {num_clips}.", ""]
    for note in notes(comparison):
        lines += textwrap.wrap(note, _LINE_WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)


def notes(comparison: Comparison) -> list[str]:
    """Lists what the intervals and p-values account for, and what they do not."""
    found = [
        "95 % intervals account for the choice of clips and assume that clips are independent. Clips of one "
        "scene are not, so the true intervals are wider.",
        "Intervals and p-values of runs apply to these trained models. They do not account for the variation "
        "between seeds.",
    ]
    if len(comparison.pairs) > 1:
        found.append("p (Holm) is corrected for the number of runs that are compared with the baseline.")
    if comparison.methods:
        found.append(
            f"Intervals of methods are for the mean over their seeds, from {BOOTSTRAP_SAMPLES:,} bootstrap "
            "samples of the clips. They do not account for the variation between seeds; the standard "
            "deviation (std) shows it."
        )
    return found


def write(comparison: Comparison, output_dir: str) -> Path:
    """Writes `comparison.html`, and `differences.csv` with the clips for which predictions differ.

    Returns:
      The path of the page.

    Raises:
      CompareError: the folder cannot be written.
    """
    folder, runs = Path(output_dir), comparison.runs
    try:
        folder.mkdir(parents=True, exist_ok=True)
        column_of = {run.name: f"predicted({run.name})" for run in runs}
        columns = ["video_id", "label", *column_of.values()]
        with files.staged_csv(folder / "differences.csv", columns) as writer:
            for clip in comparison.disagreements:
                predictions = {column_of[run.name]: run.predictions[clip] for run in runs}
                writer.writerow({"video_id": clip, "label": runs[0].labels[clip]} | predictions)
        path = folder / "comparison.html"
        html = page.render("compare.html.j2", comparison=comparison, notes=notes(comparison))
        files.write_text(path, html)
    except OSError as error:
        raise CompareError(
            f"Cannot write to {folder} ({error.strerror}). Choose another --output_dir."
        ) from error
    return path


def _run_rows(comparison: Comparison) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("run", "accuracy", "95 % interval", "loss", "differs in")]
    for run, differs_in in zip(comparison.runs, comparison.differs_in, strict=True):
        low, high = run.metrics["accuracy_ci95"]
        accuracy, loss = f"{run.metrics['accuracy']:.1%}", f"{run.metrics['loss']:.3f}"
        rows.append((run.name, accuracy, f"{low:.1%} to {high:.1%}", loss, differs_in or "nothing"))
    return rows


def _pair_rows(pairs: Sequence[Pair]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        (
            "run", "difference", "95 % interval", "only run correct", "only baseline correct", "p (McNemar)",
            "p (Holm)",
        )
    ]  # fmt: skip
    for pair in pairs:
        rows.append(
            (
                pair.run,
                _points(pair.difference),
                _points(*pair.interval),
                str(pair.only_run),
                str(pair.only_baseline),
                f"{pair.p_value:.3g}",
                f"{pair.p_holm:.3g}",
            )
        )
    # A single p-value needs no correction.
    return rows if len(pairs) > 1 else [row[:-1] for row in rows]


def _method_rows(methods: Sequence[Method]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        ("method", "runs", "mean", "min", "max", "std", "difference", "95 % interval")
    ]
    for method in methods:
        accuracies = (method.mean, min(method.accuracies), max(method.accuracies), method.deviation)
        rows.append(
            (
                method.name,
                str(len(method.runs)),
                *("" if accuracy is None else f"{accuracy:.1%}" for accuracy in accuracies),
                "" if method.difference is None else _points(method.difference),
                "" if method.interval is None else _points(*method.interval),
            )
        )
    return rows


def _points(*differences: float) -> str:
    return " to ".join(f"{100 * difference:+.1f}" for difference in differences)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns the rows of a table, the first its heading: text to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_text = [name in _TEXT_COLUMNS for name in rows[0]]
    return [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in rows
    ]

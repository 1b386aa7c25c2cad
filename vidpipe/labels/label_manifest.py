"""Writes labelled moments as a CSV manifest, and labels that could not be used as a table."""

import csv
from collections.abc import Sequence
from pathlib import Path

from vidpipe.data.moment import format_number
from vidpipe.labels.label_file import FRAMES, SECONDS, LabelFileError, LabelledMoment, Unused
from vidpipe.storage import files

MANIFEST_COLUMNS = ("video_name", "tag")
UNUSED_COLUMNS = ("reason", "where", "video", "label")
_TIMES = {SECONDS: ("start", "end"), FRAMES: ("start_frame", "end_frame")}


def check_replaceable(path: Path, columns: Sequence[str]) -> None:
    """Checks that a file may be written: there is none yet, or one that begins with these columns.

    Raises:
      LabelFileError: it is another file, or there is no folder for it.
    """
    if not path.parent.is_dir():
        raise LabelFileError(f"There is no folder {path.parent} for {path.name}. Create it first.")
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        header = []
    if header[: len(columns)] != list(columns):
        raise LabelFileError(
            f"{path} exists and does not begin with the columns {','.join(columns)}, so it is not replaced. "
            "Give another name, or delete it."
        )


def write_manifest(path: Path, moments: Sequence[LabelledMoment]) -> None:
    """Writes the manifest that `vidpipe.data.manifest` reads, with the columns that the moments need."""
    columns = [*MANIFEST_COLUMNS]
    for unit, names in _TIMES.items():
        if any(moment.unit == unit and moment.start is not None for moment in moments):
            columns += names
    if any(moment.split is not None for moment in moments):
        columns.append("split")
    with files.staged_csv(path, columns) as writer:
        for moment in moments:
            row = {"video_name": moment.video, "tag": moment.label, "split": moment.split or ""}
            if moment.start is not None and moment.end is not None:
                row |= dict(
                    zip(_TIMES[moment.unit], map(format_number, (moment.start, moment.end)), strict=True)
                )
            writer.writerow(row)


def write_unused(path: Path, unused: Sequence[Unused]) -> None:
    """Writes a row for each label that could not be used."""
    with files.staged_csv(path, UNUSED_COLUMNS) as writer:
        for each in unused:
            writer.writerow({
                "reason": each.reason.value, "where": each.where, "video": each.video, "label": each.label,
            })  # fmt: skip

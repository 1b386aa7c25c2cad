"""Reads lists of Kinetics: CSV files with the columns label, youtube_id, time_start, time_end, split.

Source: https://github.com/google-deepmind/kinetics-i3d and the CSV files of Kinetics-400, 600 and 700
(https://github.com/cvdfoundation/kinetics-dataset). Times are in seconds. Downloaders name the whole video
`YOUTUBEID.mp4`, and a clip that they have cut `YOUTUBEID_000010_000020.mp4`.
"""

from collections.abc import Sequence
from pathlib import Path

from vidpipe.data.manifest_csv import read_text
from vidpipe.data.video_row import split_of
from vidpipe.labels.label_file import LabelFileError, LabelledMoment, Labels, Reason, class_name
from vidpipe.labels.label_text import read_rows, to_number

COLUMNS = ("youtube_id", "time_start", "time_end")


def read(path: Path, tiers: Sequence[str] = ()) -> Labels:
    """Reads a CSV file.

    Raises:
      LabelFileError: a column is missing, or a row has too few values.
    """
    del tiers
    labels = Labels()
    rows = read_rows(path, read_text(path))
    _, header = next(rows, (1, []))
    missing = [name for name in ("label", *COLUMNS) if name not in header]
    if missing:
        raise LabelFileError(f"{path}: lacks the column {' and '.join(missing)}; found {', '.join(header)}.")
    for line, fields in rows:
        where = f"{path}:{line}"
        if len(fields) < len(header):
            raise LabelFileError(
                f"{where}: has {len(fields)} values for {len(header)} columns. Download the list again."
            )
        row = dict(zip(header, fields, strict=False))
        video, label = row["youtube_id"], class_name(row["label"])
        start, end = (to_number(row[name], where, name) for name in COLUMNS[1:])
        if not label:
            labels.leave_out(Reason.NO_CLASS, where, video)
            continue
        labels.moments.append(
            LabelledMoment(
                video=video, label=label, start=start, end=end, where=where,
                split=_split(row.get("split", "")),
                clip=f"{video}_{int(start):06d}_{int(end):06d}",
            )
        )  # fmt: skip
    return labels


def _split(name: str) -> str | None:
    return "val" if name == "validate" else split_of(name)

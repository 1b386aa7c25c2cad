"""Makes one list of the labelled moments of the videos in a folder, from label files of any known format."""

import dataclasses
import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from vidpipe.config import ImportConfig
from vidpipe.labels import selection
from vidpipe.labels.formats import READERS, recognise
from vidpipe.labels.label_file import FRAMES, SECONDS, LabelFileError, LabelledMoment, Labels
from vidpipe.labels.video_names import VideoNames


def import_labels(config: ImportConfig, arguments: Iterable[str]) -> Labels:
    """Reads label files and finds their videos.

    Args:
      config: the folder of the videos, and what is read.
      arguments: label files, and patterns such as `labels/*.xml`.

    Returns:
      The moments by video and time, each with the path of its video relative to `video_dir`; and the labels
      that could not be used.

    Raises:
      LabelFileError: a file cannot be read, labels contradict each other, or a choice is needed.
      FolderError: the folder of the videos cannot be listed.
      ManifestError: a file is not UTF-8.
    """
    if not Path(config.video_dir).is_dir():
        raise LabelFileError(f"There is no folder {config.video_dir} (video_dir).")
    labels = Labels()
    for path in find_files(arguments):
        found = READERS[config.format or recognise(path)](path, config.tier or ())
        labels.moments += found.moments
        labels.unused += found.unused
    if config.classes is not None:
        selection.choose_classes(labels, config.classes)
    selection.find_videos(labels, VideoNames(config.video_dir))
    selection.choose_annotator(labels, config.annotator)
    if config.frame_rate is not None:
        labels.moments = [_in_seconds(moment, config.frame_rate) for moment in labels.moments]
    labels.moments.sort(key=lambda moment: (moment.video, moment.start or 0, moment.end or 0, moment.label))
    selection.leave_out_repeated(labels)
    _check_units(labels.moments)
    _check_overlaps(labels.moments)
    return labels


def find_files(arguments: Iterable[str]) -> list[Path]:
    """Returns the files that paths and patterns name, each once.

    Raises:
      LabelFileError: a path or pattern names no file.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        is_pattern = glob.has_magic(argument) and not Path(argument).is_file()
        matches = sorted(glob.glob(argument, recursive=True)) if is_pattern else [argument]  # noqa: PTH207
        files = [path for path in map(Path, matches) if path.is_file()]
        if not files:
            raise LabelFileError(f"{'No file matches' if is_pattern else 'There is no file'} {argument}.")
        for path in files:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _in_seconds(moment: LabelledMoment, frame_rate: float) -> LabelledMoment:
    """Converts frames to seconds."""
    if moment.unit != FRAMES or moment.start is None or moment.end is None:
        return moment
    start, end = (round(each / frame_rate, 6) for each in (moment.start, moment.end))
    return dataclasses.replace(moment, start=start, end=end, unit=SECONDS)


def _check_units(moments: Sequence[LabelledMoment]) -> None:
    """Raises if one video has moments in seconds and in frames, or moments and a label of the whole."""
    first: dict[str, LabelledMoment] = {}
    for moment in moments:
        other = first.setdefault(moment.video, moment)
        if (other.unit, other.start is None) != (moment.unit, moment.start is None):
            raise LabelFileError(
                f"{moment.video}: is labelled with {other.span} ({other.where}) and with {moment.span} "
                f"({moment.where}). Give --frame_rate to convert frames to seconds, or import one file only."
            )


def _check_overlaps(moments: Sequence[LabelledMoment]) -> None:
    """Raises if moments of different classes overlap: a manifest has one class for each time of a video.

    Args:
      moments: sorted by video and start.
    """
    overlaps = []
    current: list[LabelledMoment] = []  # the moments of this video that have not ended
    for moment in moments:
        current = [each for each in current if each.video == moment.video and not _is_over(each, moment)]
        overlaps += [(each, moment) for each in current if each.label != moment.label]
        current.append(moment)
    if overlaps:
        one, other = overlaps[0]
        raise LabelFileError(
            f"{one.video}: {one.label}, {one.span} ({one.where}), and {other.label}, {other.span} "
            f"({other.where}), overlap (the first of {len(overlaps)} pairs). A moment has one class: "
            f"correct the labels, or import some classes only, such as --classes={one.label}."
        )


def _is_over(moment: LabelledMoment, later: LabelledMoment) -> bool:
    """Whether a moment ends before a later one begins."""
    return moment.end is not None and later.start is not None and moment.end <= later.start

"""Adds background clips: parts of labelled videos in which nothing is labelled."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from vidpipe.data.moment import Moment
from vidpipe.data.moment_reader import VideoLength
from vidpipe.data.video_row import ManifestError, VideoRow

# Measures videos, given their paths below video_dir; those that cannot be read are left out.
Measure = Callable[[Sequence[str]], Mapping[str, VideoLength]]

_log = logging.getLogger(__name__)


def add_background(
    rows: Sequence[VideoRow],
    labelled: Iterable[VideoRow],
    measure: Measure,
    *,
    name: str,
    ratio: float,
    margin_sec: float,
    seed: int,
) -> list[VideoRow]:
    """Adds clips of a background class, drawn from the time without a label.

    A video gets `ratio` times as many as it has moments, with the lengths of these, at random times that
    do not overlap. A clip is in the split and the group of the moment that is nearest to it. Which clips are
    drawn depends on the moments of its video and on the seed only.

    Args:
      rows: the chosen moments, located.
      labelled: all moments of the list, also those of classes that were not chosen.
      measure: gives the lengths of the videos.
      name: of the class. Moments with this label are counted as background that is there already.
      ratio: background clips per moment.
      margin_sec: time before and after each moment that is left out, seconds.
      seed: of the random times.

    Raises:
      ManifestError: there are no moments, or no time for any background.
    """
    chosen: dict[str, list[VideoRow]] = defaultdict(list)
    for row in rows:
        if row.moment is not None:
            chosen[row.video].append(row)
    if not chosen:
        raise ManifestError(
            "background needs moments, and none is listed: give a train_manifest with the columns start and "
            "end."
        )
    taken: dict[str, list[Moment]] = defaultdict(list)
    for row in labelled:
        if row.moment is not None:
            taken[row.video].append(row.moment)
    lengths = measure(sorted({row.path for row in rows if row.moment is not None and row.path}))
    added: list[VideoRow] = []
    num_wanted = 0
    for video, moments in sorted(chosen.items()):
        path = moments[0].path
        sources = [row for row in moments if row.label_name != name]
        wanted = max(0, round(ratio * len(sources)) - (len(moments) - len(sources)))
        if path not in lengths or not wanted:
            continue
        num_wanted += wanted
        for moment in _draw(taken[video], sources, lengths[path], wanted, margin_sec=margin_sec, seed=seed):
            nearest = moments[int(np.argmin([_distance(row.moment, moment) for row in moments]))]
            clip = VideoRow(f"{video}{moment}", path, name, nearest.split, nearest.group, moment)
            added.append(clip)
    if not added and all(row.label_name != name for row in rows):
        raise ManifestError(
            f"There is no time for background clips: the videos are labelled, or within {margin_sec:g} s of "
            "a label, or cannot be read. Lower background_margin_sec, or leave background out."
        )
    _log.info("Added %d background clips of the class %s.", len(added), name)
    if len(added) < num_wanted:
        _log.warning(
            "There is time for %d of %d wanted background clips only: the rest of the videos is labelled, or "
            "within %g s of a label.", len(added), num_wanted, margin_sec,
        )  # fmt: skip
    return [*rows, *added]


def _draw(
    taken: Sequence[Moment],
    sources: Sequence[VideoRow],
    length: VideoLength,
    wanted: int,
    *,
    margin_sec: float,
    seed: int,
) -> Iterator[Moment]:
    """Draws at most `wanted` moments outside of `taken`."""
    in_frames = taken[0].in_frames
    end = length.num_frames if in_frames else length.duration_sec
    margin = margin_sec * length.num_frames / length.duration_sec if in_frames else margin_sec
    free = _free_stretches(taken, end, margin)
    digest = hashlib.sha256(f"{seed} {sources[0].video}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    lengths = [row.moment.length for row in sources if row.moment is not None]
    drawn = random.permutation(np.resize(lengths, wanted))
    for size in sorted(drawn.tolist(), reverse=True):  # the longest first: they fit in fewer stretches
        room = np.array([max(0.0, stop - start - size) for start, stop in free])
        fits = np.array([stop - start >= size for start, stop in free], bool)
        if not fits.any():
            continue
        weights = np.where(fits, room + 1e-9, 0)
        index = int(random.choice(len(free), p=weights / weights.sum()))
        start, stop = free[index]
        digits = 0 if in_frames else 3
        begin = start + np.floor(random.random() * room[index] * 10**digits) / 10**digits
        moment = Moment(round(float(begin), 6), round(float(begin + size), 6), in_frames)
        free[index : index + 1] = [(start, moment.start), (moment.end, stop)]
        yield moment


def _free_stretches(taken: Sequence[Moment], end: float, margin: float) -> list[tuple[float, float]]:
    """Lists the time outside of moments and their margins, in whole frames or microseconds."""
    digits = 0 if taken[0].in_frames else 6
    stretches, position = [], 0.0
    for start, stop in [*sorted((moment.start, moment.end) for moment in taken), (end + margin, end)]:
        if min(start - margin, end) > position:
            stretches.append((position, min(start - margin, end)))
        position = max(position, stop + margin)
    scale = 10.0**digits
    return [(np.ceil(start * scale) / scale, np.floor(stop * scale) / scale) for start, stop in stretches]


def _distance(moment: Moment | None, other: Moment) -> float:
    assert moment is not None
    return max(moment.start - other.end, other.start - moment.end)

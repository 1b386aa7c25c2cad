"""Chooses which labelled moments are imported: by class, by video below a folder, and by annotator."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

from vidpipe.labels.label_file import LabelFileError, LabelledMoment, Labels, Reason
from vidpipe.labels.video_names import VideoNames


def choose_classes(labels: Labels, classes: Sequence[str]) -> None:
    """Keeps the moments of these classes.

    Raises:
      LabelFileError: a class has no moment.
    """
    known = {moment.label for moment in labels.moments}
    unknown = sorted(set(classes) - known)
    if unknown:
        raise LabelFileError(
            f"There is no class {', '.join(unknown)}; the classes are {', '.join(sorted(known)) or 'none'}."
        )
    _keep(labels, lambda moment: None if moment.label in classes else Reason.OTHER_CLASS)


def find_videos(labels: Labels, videos: VideoNames) -> None:
    """Replaces the names of videos by paths; leaves out moments without exactly one video.

    A moment of which `videos` has the clip becomes that whole file.
    """
    found: list[LabelledMoment] = []
    for moment in labels.moments:
        clips = videos.find(moment.clip) if moment.clip else []
        paths = clips or sorted(
            {path for name in (moment.video, *moment.aliases) for path in videos.find(name)}
        )
        if len(paths) != 1:
            reason = Reason.AMBIGUOUS if paths else Reason.MISSING
            labels.leave_out(reason, moment.where, moment.video, moment.label)
        elif clips:
            found.append(dataclasses.replace(moment, video=paths[0], start=None, end=None))
        else:
            found.append(dataclasses.replace(moment, video=paths[0]))
    labels.moments = found


def choose_annotator(labels: Labels, annotator: str | None) -> None:
    """Keeps the labels of one annotator for each video, and all of a video of which no annotator is named.

    Raises:
      LabelFileError: a video has several annotators and none was chosen, or the chosen one has no labels.
    """
    annotators: dict[str, set[str]] = defaultdict(set)
    for moment in labels.moments:
        annotators[moment.video].add(moment.annotator)
    named = {video: sorted(names - {""}) for video, names in annotators.items()}
    if annotator is None:
        for video, names in annotators.items():
            if len(names) > 1:
                known = ", ".join(named[video]) + (" and one without a name" if "" in names else "")
                raise LabelFileError(
                    f"{video} is labelled by several annotators: {known}. Choose one, such as "
                    f"--annotator={named[video][0]}."
                )
        return
    known_names = sorted({name for names in named.values() for name in names})
    if known_names and annotator not in known_names:
        raise LabelFileError(
            f"There is no annotator {annotator}; the annotators are {', '.join(known_names)}."
        )

    def reason_of(moment: LabelledMoment) -> Reason | None:
        is_chosen = moment.annotator == annotator or not named[moment.video]
        return None if is_chosen else Reason.OTHER_ANNOTATOR

    _keep(labels, reason_of)


def leave_out_repeated(labels: Labels) -> None:
    """Keeps one of several equal moments."""
    seen: set[tuple[object, ...]] = set()

    def reason_of(moment: LabelledMoment) -> Reason | None:
        key = (moment.video, moment.label, moment.start, moment.end, moment.unit)
        is_repeated = key in seen
        seen.add(key)
        return Reason.REPEATED if is_repeated else None

    _keep(labels, reason_of)


def _keep(labels: Labels, reason_of: Callable[[LabelledMoment], Reason | None]) -> None:
    """Leaves out the moments for which there is a reason."""
    kept = []
    for moment in labels.moments:
        reason = reason_of(moment)
        if reason is None:
            kept.append(moment)
        else:
            labels.leave_out(reason, moment.where, moment.video, moment.label)
    labels.moments = kept

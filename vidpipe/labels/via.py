"""Reads labels of the VGG Image Annotator 3 for video: its project (JSON), or its export as CSV.

The temporal segments of a project are moments, in seconds; one attribute of theirs contains the class.

Source: https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from collections.abc import Sequence
from pathlib import Path

from vidpipe.labels.label_file import LabelledMoment, Labels, Reason
from vidpipe.labels.label_text import check_choice, expect, expect_time
from vidpipe.labels.via_file import Attribute, Entry, read_file


def read(path: Path, tiers: Sequence[str] = ()) -> Labels:
    """Reads a project or a CSV export.

    Args:
      path: the file.
      tiers: names of the attributes that contain the class; empty if only one has values.

    Raises:
      LabelFileError: it is neither, or several attributes of the segments have values and none was chosen.
    """
    entries, attributes = read_file(path)
    labels = Labels()
    segments = [each for each in entries if _is_segment(labels, each)]
    attributes |= {
        key: Attribute(key, {}, "") for each in segments for key in each.values if key not in attributes
    }
    used = dict.fromkeys(attributes[key].name for each in segments for key in each.values)
    check_choice(path, list(used), tiers, "attributes")
    for entry in segments:
        video, where = expect(entry.files[0], str, entry.where, "the name of the file"), entry.where
        start, end = (expect_time(each, where, "a time") for each in entry.times)
        chosen = {
            key: value for key, value in entry.values.items() if not tiers or attributes[key].name in tiers
        }
        classes = [name for key, value in chosen.items() for name in attributes[key].classes(value)]
        if not classes:
            reason = Reason.OTHER_TIER if len(chosen) < len(entry.values) else Reason.NO_CLASS
            labels.leave_out(reason, where, video)
        for label in classes:
            labels.moments.append(LabelledMoment(video=video, label=label, start=start, end=end, where=where))
    return labels


def _is_segment(labels: Labels, entry: Entry) -> bool:
    """Whether an entry is a temporal segment of one video; otherwise it is left out."""
    if len(entry.files) == 1 and len(entry.times) == 2 and not entry.region:
        return True
    if len(entry.files) != 1:
        reason = Reason.NO_VIDEO
    elif not entry.times:
        reason = Reason.NOT_TIMED if entry.region else Reason.WHOLE_VIDEO
    else:
        reason = Reason.NO_LENGTH
    files = ", ".join(map(str, entry.files))
    labels.leave_out(reason, entry.where, files, ", ".join(entry.values.values()))
    return False

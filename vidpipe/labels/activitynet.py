"""Reads the JSON file of ActivityNet: a `database` of videos with subset, duration and annotations.

Source: https://github.com/activitynet/ActivityNet and activity_net.v1-3.min.json. The segment of an
annotation is [start, end] in seconds. Files are named like the video, with or without `v_` before it. The
videos of the subset testing have no annotations.
"""

from collections.abc import Sequence
from pathlib import Path

from vidpipe.data.video_row import split_of
from vidpipe.labels.label_file import LabelFileError, LabelledMoment, Labels, Reason, class_name
from vidpipe.labels.label_text import expect, expect_time, read_json


def read(path: Path, tiers: Sequence[str] = ()) -> Labels:
    """Reads a JSON file.

    Raises:
      LabelFileError: it lacks a part of the format.
    """
    del tiers
    labels = Labels()
    database = expect(
        expect(read_json(path), dict, str(path), "it").get("database"), dict, str(path), "database"
    )
    for name, entry in database.items():
        where = f"{path}, video {name}"
        entry = expect(entry, dict, where, "it")
        annotations = expect(entry.get("annotations") or [], list, where, "annotations")
        if not annotations:
            labels.leave_out(Reason.NO_MOMENTS, where, name)
        for index, annotation in enumerate(annotations, start=1):
            place = f"{where}, annotation {index}"
            annotation = expect(annotation, dict, place, "it")
            segment = expect(annotation.get("segment"), list, place, "segment")
            if len(segment) != 2:
                raise LabelFileError(f"{place}: segment should be [start, end]; found {len(segment)} values.")
            start, end = (expect_time(each, place, "a time") for each in segment)
            label = class_name(expect(annotation.get("label"), str, place, "label"))
            if not label:
                labels.leave_out(Reason.NO_CLASS, place, name)
                continue
            labels.moments.append(
                LabelledMoment(
                    video=name, aliases=(f"v_{name}",), label=label, start=start, end=end, where=place,
                    split=split_of(str(entry.get("subset", ""))),
                )
            )  # fmt: skip
    return labels

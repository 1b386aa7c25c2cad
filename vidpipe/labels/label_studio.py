"""Reads labels of Label Studio: timeline labels and tracked rectangles, exported as JSON or JSON-MIN.

Annotations that were cancelled and predictions are not read; a choice or another label without frames
cannot be a moment. If Label Studio's frame rate is known (label_studio_frames.py), times are in seconds,
otherwise in frames.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidpipe.labels.label_file import FRAMES, SECONDS, LabelledMoment, Labels, Reason, class_name
from vidpipe.labels.label_studio_frames import Stretch, frame_rate, frames_of, without_shared_frames
from vidpipe.labels.label_studio_tasks import Annotation, read_tasks


def read(path: Path, tiers: Sequence[str] = ()) -> Labels:
    """Reads a JSON or JSON-MIN export.

    Raises:
      LabelFileError: it is not such an export, or a task names no video.
    """
    del tiers
    labels = Labels()
    for task in read_tasks(path):
        for _ in range(task.num_predictions):
            labels.leave_out(Reason.PREDICTED, task.where, task.video)
        rates = [frame_rate(value) for each in task.annotations for _, value in each.values]
        rate = next(filter(None, rates), None)
        for annotation in task.annotations:
            stretches = _read_annotation(labels, annotation, task.video)
            for label, start, end, where in without_shared_frames(stretches):
                labels.moments.append(
                    LabelledMoment(
                        video=task.video, label=label, where=where, annotator=annotation.annotator,
                        start=start if rate is None else round(start / rate, 6),
                        end=end if rate is None else round(end / rate, 6),
                        unit=FRAMES if rate is None else SECONDS,
                    )
                )  # fmt: skip
    return labels


def _read_annotation(labels: Labels, annotation: Annotation, video: str) -> list[Stretch]:
    """Returns the labelled stretches of an annotation; leaves out its other results."""
    if annotation.is_cancelled or not annotation.values:
        reason = Reason.CANCELLED if annotation.is_cancelled else Reason.NO_MOMENTS
        labels.leave_out(reason, annotation.where, video)
        return []
    # Some exports have the class of a rectangle in a result of its own, with the id of the rectangle.
    classes: dict[str, dict[str, None]] = defaultdict(dict)
    for region, value in annotation.values:
        classes[region] |= dict.fromkeys(_class_names(value))
    regions = {region for region, value in annotation.values if _has_frames(value)}
    stretches = []
    for index, (region, value) in enumerate(annotation.values, start=1):
        where, names = f"{annotation.where}, result {index}", _class_names(value)
        if "choices" in value:
            labels.leave_out(Reason.WHOLE_VIDEO, where, video, ", ".join(_texts(value["choices"])))
        elif not _has_frames(value):
            if not (names and region in regions):
                labels.leave_out(Reason.NOT_TIMED, where, video, ", ".join(names))
        elif not (names or classes[region]):
            labels.leave_out(Reason.NO_CLASS, where, video)
        else:
            for name in names or classes[region]:
                stretches += [Stretch(name, start, end, where) for start, end in frames_of(value, where)]
    return stretches


def _has_frames(value: Mapping[str, Any]) -> bool:
    return "ranges" in value or "sequence" in value


def _class_names(value: Mapping[str, Any]) -> list[str]:
    """Returns the classes of a value, such as those of its key `timelinelabels`."""
    lists = [_texts(names) for key, names in value.items() if key.endswith("labels")]
    return [name for names in lists for name in map(class_name, names) if name]


def _texts(value: Any) -> list[str]:
    """Returns the texts of a list; a value of another type is a list of one."""
    return [str(each) for each in (value if isinstance(value, list) else [value]) if each is not None]

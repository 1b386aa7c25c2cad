"""Reads labels of CVAT: the formats "CVAT for video 1.1" (tracks) and "CVAT for images 1.1" (tags of frames).

Each stretch in which a track is visible is a moment. So are consecutive frames with the same tag; tags are
only in the format for images, which CVAT also writes for tasks of videos. Moments of one class that overlap
or touch are joined, also if they come from several tracks.

Sources: https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/ and
https://docs.cvat.ai/docs/manual/advanced/xml_format/. The exporter (cvat/apps/dataset_manager in
cvat-ai/cvat) writes frame numbers of the source video, from 0: `start_frame` and the step of `frame_filter`
are already applied. A labelled frame stands for the frames up to the next one, which are `step` frames.
"""

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from vidpipe.labels.cvat_tasks import Task, read_tasks
from vidpipe.labels.label_file import (
    FRAMES,
    LabelFileError,
    LabelledMoment,
    Labels,
    Reason,
    class_name,
    merged,
)
from vidpipe.labels.label_xml import place, read_xml

_VERSION = "1.1"


def read(path: Path, tiers: Sequence[str] = ()) -> Labels:
    """Reads an XML file.

    Raises:
      LabelFileError: it has another version, names no video, or a frame is not a number.
    """
    del tiers
    root = read_xml(path)
    version = root.findtext("version", "").strip()
    if version != _VERSION:
        raise LabelFileError(
            f"{path}: has version {version or 'nothing'} of CVAT's format; only {_VERSION} is read. Export "
            f"it as CVAT for video {_VERSION}."
        )
    labels = Labels()
    stretches: dict[tuple[Task, str], list[tuple[float, float, str]]] = defaultdict(list)
    for task, element, frames in _labelled(path, root, read_tasks(path, root)):
        where, label = place(path, element), class_name(element.get("label"))
        if not task.video:
            labels.leave_out(Reason.NO_VIDEO, where, label=label)
        elif not label:
            labels.leave_out(Reason.NO_CLASS, where, task.video)
        elif not frames:
            labels.leave_out(Reason.NO_LENGTH, where, task.video, label)
        else:
            stretches[task, label] += [(start, end, where) for start, end in frames]
    for (task, label), found in stretches.items():
        for start, end, where in merged(found):
            labels.moments.append(
                LabelledMoment(
                    video=task.video, label=label, start=start, end=end, unit=FRAMES, where=where,
                    split=task.split, annotator=task.annotator,
                )
            )  # fmt: skip
    return labels


def _labelled(
    path: Path, root: ET.Element, tasks: dict[str, Task]
) -> Iterator[tuple[Task, ET.Element, list[tuple[int, int]]]]:
    """Yields labelled elements with their tasks and with their frames in the video, as [start, end)."""
    for element in root:
        if element.tag not in ("track", "image", "tag"):
            continue
        task_id = "" if "" in tasks else element.get("task_id", "")
        if task_id not in tasks:
            raise LabelFileError(
                f"{place(path, element)}: belongs to the task {task_id!r}, which the file does not describe. "
                "Export the project again."
            )
        task = tasks[task_id]
        if element.tag == "track":
            yield task, element, _visible_stretches(path, element, task)
        elif element.tag == "tag":
            yield task, element, [task.frames(path, element, "frame")]
        else:
            frames = task.frames(path, element, "id")
            yield from ((task, each, [frames]) for each in element)


def _visible_stretches(path: Path, track: ET.Element, task: Task) -> list[tuple[int, int]]:
    """Returns the frames in which a track is visible: each shape counts until the next one."""
    shapes = sorted(
        (task.frames(path, shape, "frame"), _is_outside(shape)) for shape in track if "frame" in shape.attrib
    )
    stretches = []
    for index, ((start, end), is_outside) in enumerate(shapes):
        if index + 1 < len(shapes):
            end = shapes[index + 1][0][0]
        if not is_outside and end > start:
            stretches.append((start, end))
    return stretches


def _is_outside(shape: ET.Element) -> bool:
    """Whether a shape is hidden; a skeleton is if all its points are."""
    points = [each for each in shape if each.tag != "attribute"] if shape.tag == "skeleton" else [shape]
    return all(each.get("outside") == "1" for each in points)

"""The tasks of a CVAT export: their videos, and how the frames of these are numbered.

Source: `abs_frame_id` and the classes of metadata in cvat/apps/dataset_manager/bindings.py (cvat-ai/cvat).
"""

import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from vidpipe.data.video_row import split_of
from vidpipe.labels.label_file import AGAIN, LabelFileError
from vidpipe.labels.label_text import to_frame
from vidpipe.labels.label_xml import attribute, place


@dataclass(frozen=True)
class Task:
    """A task: a video, and how its frames are numbered.

    Attributes:
      video: its name; empty for a task of images.
      split: its subset, if that is a split.
      annotator: the user it is assigned to; empty for none.
      offset: the number that the video's frame 0 has in the file.
      first: first frame of the task in the video.
      step: frames of the video for each labelled frame.
      stop: last frame of the task in the video; None if unknown.
    """

    video: str
    split: str | None
    annotator: str
    offset: int
    first: int
    step: int
    stop: int | None

    def frames(self, path: Path, element: ET.Element, name: str) -> tuple[int, int]:
        """Returns the frames of the video for which a labelled frame stands, as [start, end).

        Args:
          path: the file.
          element: the element with the frame.
          name: the attribute that has its number.

        Raises:
          LabelFileError: the attribute is missing, no whole number, or not a frame of the task.
        """
        where = place(path, element)
        start = to_frame(attribute(path, element, name), where, name) - self.offset
        if (start - self.first) % self.step:
            raise LabelFileError(
                f"{where}: frame {start} is not among the frames of the task, {self.first}, "
                f"{self.first + self.step}, ...: they were renumbered. {AGAIN}."
            )
        end = start + self.step
        return start, end if self.stop is None else max(start + 1, min(end, self.stop + 1))


def read_tasks(path: Path, root: ET.Element) -> dict[str, Task]:
    """Returns the tasks by their id. "" is the only task in the export of a task or a job.

    Raises:
      LabelFileError: no task names a video, or a number is invalid.
    """
    in_project = root.findall("meta/project/tasks/task")
    offsets: dict[str, int] = defaultdict(int)
    tasks = {}
    for element in in_project or root.findall("meta/task") or root.findall("meta/job"):
        where, subset = place(path, element), element.findtext("subset", "").strip()
        first = to_frame(element.findtext("start_frame", "0"), where, "start_frame")
        stop = element.findtext("stop_frame")
        step = re.search(r"step\s*=\s*(\d+)", element.findtext("frame_filter") or "")
        task = Task(
            # Earlier versions of CVAT write the source beside the task.
            video=(element.findtext("source") or root.findtext("meta/source") or "").strip(),
            split=split_of(subset),
            annotator=element.findtext("assignee/username", "").strip(),
            offset=offsets[subset],
            first=first,
            step=max(1, int(step[1])) if step else 1,
            stop=None if stop is None else to_frame(stop, where, "stop_frame"),
        )
        if in_project:  # the numbers of a task start after those of the tasks before it in its subset
            size = to_frame(element.findtext("size", ""), where, "size")
            offsets[subset] += first + task.step * size
        tasks[element.findtext("id", "").strip() if in_project else ""] = task
    if not any(task.video for task in tasks.values()):
        raise LabelFileError(
            f"{path}: names no video (<source>), like the export of a job or of a task of images. Export the "
            "task of the video."
        )
    return tasks

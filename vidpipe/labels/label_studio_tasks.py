"""The tasks and annotations in Label Studio's exports as JSON and JSON-MIN.

Sources: https://labelstud.io/guide/task_format and https://labelstud.io/guide/export. A task of JSON-MIN
has one annotation, and each control of the project, such as the timeline labels, is a key of the task.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidpipe.labels.label_file import LabelFileError
from vidpipe.labels.label_text import expect, read_json
from vidpipe.labels.video_names import is_video


@dataclass(frozen=True)
class Annotation:
    """What one annotator did for a task.

    Attributes:
      where: file, task and annotation.
      annotator: e-mail address or number of the user; empty if unknown.
      is_cancelled: whether the annotator skipped the task.
      values: the value of each result, with the id of its region.
    """

    where: str
    annotator: str
    is_cancelled: bool
    values: list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Task:
    """A video with its annotations."""

    where: str
    video: str
    annotations: list[Annotation]
    num_predictions: int


def read_tasks(path: Path) -> Iterator[Task]:
    """Yields the tasks of a file.

    Raises:
      LabelFileError: it is not such an export, or a task names no video.
    """
    content = read_json(path)
    tasks = [content] if isinstance(content, dict) else expect(content, list, str(path), "it")
    for index, task in enumerate(tasks, start=1):
        where = f"{path}, task {task.get('id', index) if isinstance(task, dict) else index}"
        task = expect(task, dict, where, "it")
        if "annotations" in task:
            data = expect(task.get("data"), dict, where, "data")
            annotations = expect(task["annotations"], list, where, "annotations")
        else:
            data, annotations = task, [_annotation_of_minimal(task)]
        predictions = expect(task.get("predictions") or [], list, where, "predictions")
        yield Task(
            where,
            _video_name(data, where),
            [_annotation(each, number, where) for number, each in enumerate(annotations, start=1)],
            len(predictions),
        )


def _video_name(data: Mapping[str, Any], where: str) -> str:
    """Returns the value of a task that names its video."""
    if isinstance(data.get("video"), str):
        return str(data["video"])
    names = {value for value in data.values() if isinstance(value, str) and is_video(value)}
    if len(names) != 1:
        raise LabelFileError(
            f"{where}: its data names {', '.join(sorted(names)) or 'no video'}. Give the video the key "
            "`video` in the data of the task."
        )
    return names.pop()


def _annotation_of_minimal(task: Mapping[str, Any]) -> dict[str, Any]:
    """Makes an annotation like those of the JSON export."""
    result = [
        {"value": each}
        for value in task.values()
        for each in (value if isinstance(value, list) else [value])
        if isinstance(each, dict)
    ]
    return {"id": task.get("annotation_id"), "completed_by": task.get("annotator"), "result": result}


def _annotation(content: Any, number: int, where: str) -> Annotation:
    content = expect(content, dict, where, "an annotation")
    where = f"{where}, annotation {content.get('id') or number}"
    user = content.get("completed_by")
    if isinstance(user, dict):
        user = user.get("email") or user.get("id")
    values = []
    for result in expect(content.get("result") or [], list, where, "result"):
        result = expect(result, dict, where, "a result")
        if result.get("type") != "relation":  # an arrow between two regions
            values.append((str(result.get("id", "")), expect(result.get("value"), dict, where, "value")))
    return Annotation(where, "" if user is None else str(user), bool(content.get("was_cancelled")), values)

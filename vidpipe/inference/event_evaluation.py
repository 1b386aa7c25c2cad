"""Compares the events that a model finds in long videos with labels, or fits the event rule to these."""

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidpipe.config import EventEvaluationConfig
from vidpipe.data.dataset import Dataset, open_dataset
from vidpipe.data.moment import split_id
from vidpipe.data.shards import duration_of
from vidpipe.errors import VidpipeError
from vidpipe.evaluation import event_report
from vidpipe.evaluation.detection import Detection, choose_detection, write_detection
from vidpipe.evaluation.event_fit import LabelledWindows, RuleFit, fit_rule
from vidpipe.evaluation.event_metrics import VideoEvents, compute_event_metrics
from vidpipe.evaluation.events import Event, merge_windows, naive_events
from vidpipe.inference.predict import Classifier, load_classifier
from vidpipe.inference.timeline import as_arrays, predict_windows
from vidpipe.storage import files
from vidpipe.training.run_folder import RunFolder

# With three, a fitted rule was no better than the default one on other videos (tools/accuracy/RESULTS.md).
_FEW_VIDEOS = 10
_log = logging.getLogger(__name__)


class EventEvaluationError(VidpipeError):
    """The dataset, the videos or the model do not allow an evaluation of events."""


@dataclass(frozen=True)
class EventEvaluation:
    """The outcome of an evaluation of events.

    Attributes:
      metrics: of the events, see `event_metrics.compute_event_metrics`.
      naive_metrics: those of adjacent windows with the same most probable class.
      detection: how the events were found.
      page: the report.
    """

    metrics: dict[str, Any]
    naive_metrics: dict[str, Any]
    detection: Detection
    page: Path


def evaluate_events(config: EventEvaluationConfig) -> EventEvaluation:
    """Finds the events in the videos of a split, compares them with its moments, and writes the report.

    Raises:
      EventEvaluationError: the split has no moments, its classes are not those of the model, or a video is
        missing or cannot be read.
      ModelError, ShardError, RuleFileError, EventError: the inputs or the output folder are unusable.
    """
    folder = RunFolder(Path(config.run_dir))
    with open_dataset(config.data_dir) as dataset:
        labelled = labelled_events(dataset, config.split)
    classifier = _load(config, dataset)
    classes, background = classifier.metadata.classes, classifier.metadata.background
    detection = _detection(config, classifier, use_fitted=True)
    windows = _predict(classifier, labelled, config, detection)
    found = _with_events(
        windows, [merge_windows(each.bounds, each.probabilities, classes, detection.rule) for each in windows]
    )
    naive = _with_events(
        windows, [naive_events(each.bounds, each.probabilities, classes, background) for each in windows]
    )
    event_classes = [name for name in classes if name != background]
    metrics = compute_event_metrics(found, event_classes)
    report = event_report.EventReport(
        name=folder.path.name,
        split=config.split,
        metrics=metrics,
        videos=found,
        rule=detection.rule,
        provenance={
            "dataset": dataset.data_dir,
            "windows": f"{detection.window_sec:g} s every {detection.hop_sec:g} s",
            "event rule": "fitted" if detection.model_sha256 else "the default, not fitted",
        },
    )
    page = event_report.write(report, folder.event_evaluation(config.split))
    return EventEvaluation(metrics, compute_event_metrics(naive, event_classes), detection, page)


def fit_events(config: EventEvaluationConfig) -> RuleFit:
    """Fits the event rule of a run to the validation split, and writes event_rule.json into the run folder.

    Raises:
      As `evaluate_events`.
    """
    folder = RunFolder(Path(config.run_dir))
    with open_dataset(config.data_dir) as dataset:
        labelled = labelled_events(dataset, "val")
        train_rows = dataset.clip_rows("train")
    if len(labelled) < _FEW_VIDEOS:
        _log.warning(
            "The rule is fitted to %d videos only; on others it may be no better than the default rule.",
            len(labelled),
        )
    classifier = _load(config, dataset)
    background = classifier.metadata.background
    detection = _detection(config, classifier, use_fitted=False)
    fit = fit_rule(
        _predict(classifier, labelled, config, detection),
        classifier.metadata.classes,
        background=background,
        hop_sec=detection.hop_sec,
        durations_sec=[duration_of(row) for row in train_rows if row["label"] != background],
    )
    fitted = dataclasses.replace(detection, rule=fit.rule, model_sha256=files.sha256_of(folder.model))
    write_detection(folder.event_rule, fitted)
    return fit


def labelled_events(dataset: Dataset, split: str) -> dict[str, list[Event]]:
    """Returns the labelled events of each video of a split, without background, by the video's name.

    Moments that the conversion skipped are logged: they are missing among the events.

    Raises:
      EventEvaluationError: there are none, or a video has moments in other splits too.
    """
    background = dataset.info.settings.get("background")
    events: dict[str, list[Event]] = defaultdict(list)
    splits: dict[str, set[str]] = defaultdict(set)
    skipped: list[str] = []
    for row in dataset.video_rows():
        video, moment = split_id(row["video_id"])
        if moment is None:
            continue
        splits[video].add(row["split"])
        if row["split"] != split:
            continue
        if row["status"] != "ok":
            skipped.append(row["video_id"])
            continue
        of_video = events[video]
        if row["label"] != background:
            of_video.append(Event(row["label"], float(row["start_sec"]), float(row["end_sec"])))
    if not any(events.values()):
        raise EventEvaluationError(
            f"{dataset.data_dir} has no {split} moments. Convert lists with the columns start and end; whole "
            "videos of that split are kept for it with the column split, or with --val_fraction."
        )
    for video in events:
        if len(splits[video]) > 1:
            raise EventEvaluationError(
                f"{video} has moments in {' and '.join(sorted(splits[video]))}. Events are compared over "
                "whole videos: list all moments of a video in one split, and convert again."
            )
    if skipped:
        _log.warning(
            "%d %s moments were skipped by the conversion, such as %s, and are not among the "
            "labelled events.",
            len(skipped), split, skipped[0],
        )  # fmt: skip
    return dict(sorted(events.items()))


def _load(config: EventEvaluationConfig, dataset: Dataset) -> Classifier:
    classifier = load_classifier(config.run_dir)
    if classifier.metadata.classes != dataset.classes:
        raise EventEvaluationError(
            f"The model in {config.run_dir} has the classes {', '.join(classifier.metadata.classes)}; the "
            f"dataset {dataset.data_dir} has {', '.join(dataset.classes)}."
        )
    return classifier


def _detection(config: EventEvaluationConfig, classifier: Classifier, *, use_fitted: bool) -> Detection:
    if classifier.metadata.background is None:
        _log.warning(
            "The model has no background class, so it finds an event at any time. Convert with "
            "--background=NAME to train one."
        )
    return choose_detection(
        RunFolder(Path(config.run_dir)),
        classifier.metadata,
        window_sec=config.window_sec,
        hop_sec=config.hop_sec,
        use_fitted=use_fitted,
    )


def _predict(
    classifier: Classifier,
    labelled: Mapping[str, Sequence[Event]],
    config: EventEvaluationConfig,
    detection: Detection,
) -> list[LabelledWindows]:
    paths = {video: Path(config.video_dir, video) for video in labelled}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise EventEvaluationError(
            f"{len(missing)} of {len(paths)} labelled videos are not under {config.video_dir}, such as "
            f"{missing[0]}. Give the --video_dir of the conversion."
        )
    found = []
    for video, events in labelled.items():
        path = str(paths[video])
        windows, failure = predict_windows(
            classifier,
            path,
            window_sec=detection.window_sec,
            hop_sec=detection.hop_sec,
            batch_size=config.batch_size,
            timeout_sec=config.timeout_sec,
        )
        if failure is not None:
            raise EventEvaluationError(f"{path}: {failure.message}. Its events cannot be compared.")
        bounds, probabilities = as_arrays(windows, classifier.metadata.classes)
        found.append(LabelledWindows(video=path, bounds=bounds, probabilities=probabilities, labelled=events))
    return found


def _with_events(windows: Sequence[LabelledWindows], events: Sequence[list[Event]]) -> list[VideoEvents]:
    """Puts the predicted events of each video beside its labelled ones."""
    return [
        VideoEvents(
            video=each.video,
            duration_sec=float(each.bounds[-1, 1]),
            labelled=each.labelled,
            predicted=predicted,
        )
        for each, predicted in zip(windows, events, strict=True)
    ]

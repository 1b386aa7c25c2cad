"""Events of long videos against their labels: videos that are red for two seconds and then blue."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from synthetic import InProcessPool, edit_videos_csv, write_colours
from tools import evaluate_events as evaluate_events_tool
from vidpipe.config import ClipConfig, ConversionConfig, EventEvaluationConfig, ManifestConfig
from vidpipe.data import convert
from vidpipe.data.dataset import open_dataset
from vidpipe.evaluation.detection import RuleFileError, choose_detection, read_detection
from vidpipe.evaluation.events import EventRule
from vidpipe.inference.event_evaluation import EventEvaluationError, evaluate_events, labelled_events
from vidpipe.model.model_file import ModelMetadata, read_metadata
from vidpipe.training.run_folder import RunFolder

RED, BLUE = (200, 30, 30), (30, 30, 200)
CLIP = ClipConfig(num_frames=4, image_size=32)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of four seconds in all three splits, and a dataset of their moments."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "videos").mkdir()
    rows = ["video_name,tag,start,end,split"]
    for split in ("train", "val", "test"):
        for number in range(2):
            name = f"{split}{number}.avi"
            write_colours(folder / "videos" / name, [RED] * 20 + [BLUE] * 20)
            rows += [f"{name},red,0,2,{split}", f"{name},blue,2,4,{split}"]
    write_colours(folder / "videos" / "other.avi", [(30, 200, 30)] * 20)
    rows.append("other.avi,green,0,2,train")
    (folder / "labels.csv").write_text("\n".join(rows))
    manifest = ManifestConfig(
        video_dir=str(folder / "videos"), train_manifest=str(folder / "labels.csv"), val_fraction=0
    )
    config = ConversionConfig(
        output_dir=str(folder / "records"), manifest=manifest, clip=CLIP, encoding="png"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "ReaderPool", InProcessPool)
        convert.convert(config)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path, colour_run: str) -> Path:
    return Path(shutil.copytree(colour_run, tmp_path / "run"))


def _config(labelled: Path, run_dir: Path, **settings: Any) -> EventEvaluationConfig:
    fields: dict[str, Any] = {
        "video_dir": str(labelled / "videos"),
        "window_sec": 1,
        "hop_sec": 0.5,
    } | settings
    return EventEvaluationConfig(run_dir=str(run_dir), data_dir=str(labelled / "records"), **fields)


def test_the_tool_fits_a_rule_and_compares_events(
    labelled: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows of a second, every half second: the one in the middle has both colours."""
    flags = [
        f"--run_dir={run_dir}", f"--data_dir={labelled / 'records'}", f"--video_dir={labelled / 'videos'}",
        "--window_sec=1", "--hop_sec=0.5",
    ]  # fmt: skip
    assert evaluate_events_tool.run(["evaluate_events.py", *flags, "--fit"]) == 0
    printed, warned = capsys.readouterr()
    assert "on val: smoothing 0 s" in printed
    assert "fitted to 2 videos only" in warned
    fitted = read_detection(run_dir / "event_rule.json")
    assert (fitted.window_sec, fitted.hop_sec, fitted.rule.smoothing_sec) == (1, 0.5, 0)
    assert evaluate_events_tool.run(["evaluate_events.py", *flags[:3]]) == 0  # the windows of the rule
    printed = capsys.readouterr().out
    assert "2 videos" in printed
    metrics = json.loads((run_dir / "events_test" / "metrics.json").read_text())
    assert (metrics["num_labelled"], metrics["num_predicted"], metrics["f1"]) == (4, 4, 1.0)
    # A border is found to half a hop: 1.75 or 2.25 instead of 2 s, a tIoU of 0.875 or 0.889.
    assert metrics["map"]["0.85"] == 1.0
    assert metrics["map"]["0.90"] < 1
    assert (run_dir / "events_test" / "events.html").exists()


def test_labels_of_a_split(labelled: Path) -> None:
    with open_dataset(str(labelled / "records")) as dataset:
        events = labelled_events(dataset, "test")
    assert list(events) == ["test0.avi", "test1.avi"]
    assert [(event.label, event.start_sec, event.end_sec) for event in events["test0.avi"]] == [
        ("red", 0, 2), ("blue", 2, 4),
    ]  # fmt: skip


def test_skipped_moments_are_named_and_videos_in_two_splits_are_rejected(
    labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skipped, parted = (
        Path(shutil.copytree(labelled / "records", tmp_path / name)) for name in ("skipped", "parted")
    )
    row = '"test0.avi#t=0,2",{},red,test0.avi,{}'
    edit_videos_csv(skipped, row.format("test", "ok"), row.format("test", "skipped"))
    with open_dataset(str(skipped)) as dataset:
        assert [event.label for event in labelled_events(dataset, "test")["test0.avi"]] == ["blue"]
    assert "1 test moments were skipped by the conversion, such as test0.avi#t=0,2" in caplog.text
    edit_videos_csv(parted, row.format("test", "ok"), row.format("val", "ok"))
    with (
        open_dataset(str(parted)) as dataset,
        pytest.raises(EventEvaluationError, match=r"test0.avi has moments in test and val\. Events are"),
    ):
        labelled_events(dataset, "test")


def test_missing_videos_and_datasets_without_moments_are_one_line(
    labelled: Path, run_dir: Path, data_dir: str, tmp_path: Path
) -> None:
    with pytest.raises(EventEvaluationError, match="2 of 2 labelled videos are not under .*test0.avi"):
        evaluate_events(_config(labelled, run_dir, video_dir=str(tmp_path)))
    with pytest.raises(EventEvaluationError, match="has no test moments"):
        evaluate_events(EventEvaluationConfig(run_dir=str(run_dir), data_dir=data_dir, video_dir="."))


def test_windows_are_as_long_as_the_clips_and_others_are_named(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = ModelMetadata(("a", "none"), CLIP, 4, clip_sec=(2, 3, 5), background="none")
    folder = RunFolder(run_dir)
    chosen = choose_detection(folder, metadata)
    assert (chosen.window_sec, chosen.hop_sec, chosen.rule.background) == (3, 1.5, "none")
    assert not caplog.messages
    for window_sec in (1, 10):  # half of the shortest clips, and twice the longest
        choose_detection(folder, metadata, window_sec=window_sec)
        assert not caplog.messages
    for too_far in (0.9, 10.1):
        choose_detection(folder, metadata, window_sec=too_far)
        assert f"Windows of {too_far:g} s are far from the clips" in caplog.messages.pop()
        caplog.clear()


def test_a_rule_of_another_model_or_a_corrupt_one_is_named(
    labelled: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(run_dir)
    path, metadata = folder.event_rule, read_metadata(folder.model)
    values: dict[str, Any] = {"smoothing_sec": 0, "high": 0.6, "low": 0.5, "min_sec": 0}
    fitted = {"window_sec": 1, "hop_sec": 0.5, "model_sha256": "other", "rule": values}
    path.write_text(json.dumps(fitted))
    assert choose_detection(folder, metadata).rule == EventRule(**values)
    assert "was fitted to another model" in caplog.text
    for text in ("{", "[]", json.dumps(fitted | {"hop_sec": 0}), json.dumps(fitted | {"x": 1})):
        path.write_text(text)
        with pytest.raises(RuleFileError, match="event_rule.json is corrupt"):
            choose_detection(folder, metadata)

"""The commands that convert videos, inspect a dataset and make demo videos: flags, output and exit codes."""

import shutil
import sys
from pathlib import Path

import pytest

from synthetic import CONVERSION_FLAGS, committed_bytes, flip_bit
from tools import convert_videos, inspect_shards, make_demo_videos
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
from vidpipe.data import convert, shards, video
from vidpipe.data.skip_reason import SkipReason

SKIPPED = convert.Skipped("a.avi", SkipReason.NO_FRAMES, "message")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[ConversionConfig]:
    """Replaces the conversion; collects the configs that it is called with."""
    configs: list[ConversionConfig] = []

    def record(config: ConversionConfig, *, make_shards: object, task: object) -> convert.ConversionReport:
        assert (make_shards is None) == (config.runner == "local")
        configs.append(config)
        return convert.ConversionReport(
            written=7,
            skipped=[SKIPPED],
            shards_kept=2,
            shards_made=3,
            shards_missing=0 if task is None else 4,
            warnings=["No test video of b."],
        )

    monkeypatch.setattr(convert, "convert", record)
    return configs


def _convert(*flags: str) -> int:
    return convert_videos.run(["convert_videos.py", "--video_dir=v", "--output_dir=o", *flags])


def test_the_outcome_of_a_conversion_is_printed(
    conversions: list[ConversionConfig], capsys: pytest.CaptureFixture
) -> None:
    assert _convert() == 0
    assert capsys.readouterr().out == (
        "o: 7 clips, 1 videos skipped; 3 shards written, 2 kept.\nWarning: No test video of b.\n"
    )
    assert conversions == [ConversionConfig(output_dir="o", manifest=ManifestConfig(video_dir="v"))]


def test_a_task_says_what_is_missing(
    conversions: list[ConversionConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "5")
    assert _convert("--task_count=8") == 0
    assert capsys.readouterr().out == (
        "o, task 5 of 8: 7 clips, 1 videos skipped; 3 shards written, 2 kept.\n"
        "Other tasks have 4 shards to write; the last one completes the dataset.\n"
        "Warning: No test video of b.\n"
    )
    assert _convert() == 2
    assert "JOB_COMPLETION_INDEX needs --task_count" in capsys.readouterr().err
    assert len(conversions) == 1


@pytest.mark.parametrize(
    ("flags", "clip"),
    [
        ([], ClipConfig()),
        (["--recipe=frozen", "--num_frames=8"], ClipConfig(num_frames=8)),
        (["--recipe=notebook"], ClipConfig(sampling="head")),
        (["--recipe=notebook", "--num_frames=8"], ClipConfig(sampling="head", num_frames=8)),
        (["--recipe=notebook", "--sampling=uniform"], ClipConfig()),
    ],
)
def test_a_recipe_sets_the_defaults_of_the_clips(
    conversions: list[ConversionConfig], flags: list[str], clip: ClipConfig
) -> None:
    assert _convert(*flags) == 0
    assert conversions[0].clip == clip


@pytest.mark.parametrize("arguments", [["x"], ["--", "--runner=FlinkRunner"]])
def test_only_beam_takes_other_arguments(
    conversions: list[ConversionConfig], capsys: pytest.CaptureFixture, arguments: list[str]
) -> None:
    assert _convert(*arguments) == 2
    assert f"unexpected arguments: {arguments[-1]}" in capsys.readouterr().err
    assert conversions == []


def test_the_options_of_beam_follow_after_two_dashes(
    conversions: list[ConversionConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_beam = pytest.importorskip("vidpipe.data.convert_beam", reason="apache-beam is not installed")
    received: list[list[str]] = []

    def make_shards_on(beam_args: list[str]) -> object:
        received.append(beam_args)
        return convert.make_shards_here

    monkeypatch.setattr(convert_beam, "make_shards_on", make_shards_on)
    assert _convert("--runner=beam", "--", "--runner=FlinkRunner", "--parallelism=64") == 0
    assert received == [["--runner=FlinkRunner", "--parallelism=64"]]


@pytest.mark.parametrize(
    ("name", "library", "flags"),
    [("beam", "apache_beam", []), ("dask", "distributed", ["--dask_scheduler=tcp://a:1"])],
)
def test_without_an_engine_the_package_to_install_is_named(
    conversions: list[ConversionConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    name: str,
    library: str,
    flags: list[str],
) -> None:
    monkeypatch.delitem(sys.modules, f"vidpipe.data.convert_{name}", raising=False)
    monkeypatch.delattr(f"vidpipe.data.convert_{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)  # importing it fails
    assert _convert(f"--runner={name}", *flags) == 1
    assert f"--runner={name} needs {name.title()}: pip install 'vidpipe[{name}]'" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--runner=dask"], ["--dask_scheduler=tcp://a:1"]])
def test_dask_and_its_scheduler_go_together(
    conversions: list[ConversionConfig], capsys: pytest.CaptureFixture, flags: list[str]
) -> None:
    assert _convert(*flags) == 2
    assert "--runner=dask and --dask_scheduler=ADDRESS go together" in capsys.readouterr().err


def test_a_conversion_from_the_command_line(
    tmp_path: Path, video_dir: Path, data_dir: str, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    flags = [f"--video_dir={video_dir}", f"--output_dir={out}", *CONVERSION_FLAGS]
    assert convert_videos.run(["convert_videos.py", *flags]) == 0
    assert capsys.readouterr().out == f"{out}: 16 clips, 0 videos skipped; 5 shards written, 0 kept.\n"
    assert committed_bytes(out) == committed_bytes(Path(data_dir))


def test_a_dataset_is_summarized_and_verified(
    tmp_path: Path, data_dir: str, info: shards.DatasetInfo, capsys: pytest.CaptureFixture
) -> None:
    sheet = tmp_path / "clips.png"
    flags = [f"--data_dir={data_dir}", "--verify", f"--contact_sheet={sheet}"]
    assert inspect_shards.run(["inspect_shards.py", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{data_dir}: 4 frames of 32 x 32, uniform, png; 2 classes; decoded by {video.DECODER}; "
        f"fingerprint {info.fingerprint[:16]}"
    )
    assert [line.split()[:5] for line in lines[1:4]] == [
        ["train", "8", "clips", "2", "shards"],
        ["val", "2", "clips", "1", "shards"],
        ["test", "6", "clips", "2", "shards"],
    ]
    assert lines[4:] == [
        "  source videos: 1 to 16 frames, median 6.5",
        "  5 clips shorter than 4 frames; 0 videos with damaged frames",
        "  long   train     4  val     1  test     3",
        "  short  train     4  val     1  test     3",
        "  skipped: 0",
        "Verified: no problems found.",
        f"Contact sheet: {sheet}",
    ]
    assert sheet.read_bytes()[:4] == b"\x89PNG"


def test_the_problems_of_a_dataset_are_printed(
    tmp_path: Path, data_dir: str, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    flip_bit(folder / "train-00000-of-00002.tfrecord", 1)
    sheet = tmp_path / "clips.png"
    flags = [f"--data_dir={folder}", "--verify", f"--contact_sheet={sheet}"]
    assert inspect_shards.run(["inspect_shards.py", *flags]) == 1
    digest, record, last = capsys.readouterr().out.splitlines()
    assert digest == "train-00000-of-00002.tfrecord: its sha256 differs from the one in dataset_info.json"
    assert record.startswith("train-00000-of-00002.tfrecord, position 1, train/")
    assert last == (
        f"{folder}: problems found: 2. To repair the dataset, run the tools/convert_videos.py command that "
        "made it again."
    )
    assert not sheet.exists()


def test_skipped_videos_are_counted_by_reason(
    tmp_path: Path, video_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    videos = Path(shutil.copytree(video_dir / "train", tmp_path / "videos"))
    for name in ("a.avi", "b.avi"):
        (videos / "short" / name).write_bytes(b"garbage")
    flags = [f"--video_dir={videos}", f"--output_dir={tmp_path / 'out'}", *CONVERSION_FLAGS]
    assert convert_videos.run(["convert_videos.py", *flags, "--max_skipped=0.2"]) == 0
    assert inspect_shards.run(["inspect_shards.py", f"--data_dir={tmp_path / 'out'}"]) == 0
    assert "  skipped: 2\n        2  cannot_open: does not open as a video\n" in capsys.readouterr().out


def test_demo_videos_are_written_with_their_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(make_demo_videos, "_CLIPS_PER_GROUP", 1)
    assert make_demo_videos.run(["make_demo_videos.py", f"--output_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 36 train and 12 test videos.\n"
    for split, count in (("train", 36), ("test", 12)):
        lines = (tmp_path / "lists" / f"{split}list01.txt").read_text().splitlines()
        assert len(lines) == count
        assert all((tmp_path / "videos" / line.split()[0]).is_file() for line in lines)

"""Beam makes the same bytes, takes up what is there, and says what failed. On Beam's local runner."""

import dataclasses
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from synthetic import CONVERSION_FLAGS, committed_bytes, faulty_read
from vidpipe import convert, shards, video
from vidpipe.config import ClipConfig, ConversionConfig

logging.disable(logging.WARNING)  # Beam names every optional package that is not installed
convert_beam = pytest.importorskip("vidpipe.convert_beam", reason="apache-beam is not installed")
logging.disable(logging.NOTSET)

MakeConversion = Callable[..., ConversionConfig]


def test_the_same_bytes(tmp_path: Path, conversion: MakeConversion, data_dir: str) -> None:
    report = convert.convert(conversion(tmp_path / "out"), runner=convert_beam.runner([]))
    assert (report.written, report.skipped, report.shards_made, report.shards_kept) == (16, [], 5, 0)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))
    assert sorted(path.name for path in (tmp_path / "out" / ".conversion").iterdir()) == sorted(
        path.name for path in (Path(data_dir) / ".conversion").iterdir()
    )


def test_on_processes_of_their_own_the_same_bytes(tmp_path: Path, video_dir: Path, data_dir: str) -> None:
    """As on a cluster: plans, settings and code reach a process that shares nothing but the folder."""
    tool = Path(__file__).parents[1] / "tools" / "convert_videos.py"
    beam_args = ["--", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    places = [f"--video_dir={video_dir}", f"--output_dir={tmp_path / 'out'}"]
    command = [sys.executable, str(tool), *places, *CONVERSION_FLAGS, "--runner=beam", *beam_args]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{tmp_path / 'out'}: 16 clips, 0 videos skipped; 5 shards written, 0 kept.\n"
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


def test_one_runner_goes_on_where_the_other_stopped(
    tmp_path: Path, conversion: MakeConversion, data_dir: str
) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "out"))
    (folder / shards.INFO_NAME).unlink()
    (folder / "train-00001-of-00002.tfrecord").unlink()
    report = convert.convert(conversion(folder), runner=convert_beam.runner([]))
    assert (report.shards_made, report.shards_kept) == (1, 4)
    assert committed_bytes(folder) == committed_bytes(Path(data_dir))


def test_a_bad_video_costs_itself_only(tmp_path: Path, video_dir: Path, conversion: MakeConversion) -> None:
    config = conversion(tmp_path / "out", max_skipped=0.5, timeout_sec=2)
    config = dataclasses.replace(
        config, manifest=dataclasses.replace(config.manifest, video_dir=str(video_dir / "train"))
    )
    report = convert.convert(config, read=faulty_read, runner=convert_beam.runner([]))
    assert dict(report.skipped) == {
        "long/video_00.avi": f"crashed the decoder (exit code {-signal.SIGSEGV})",
        "long/video_01.avi": "timed out after 2 s",
        "long/video_02.avi": "worker has []",
    }
    assert report.written == 7


def unmended_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Fails as code does, not as a video does."""
    raise ZeroDivisionError(path)


def test_a_pipeline_that_fails_is_told_in_one_line(tmp_path: Path, conversion: MakeConversion) -> None:
    with pytest.raises(
        convert.ConversionError, match=r"The Beam pipeline failed: .*run the same command"
    ) as told:
        convert.convert(conversion(tmp_path / "out"), read=unmended_read, runner=convert_beam.runner([]))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out" / shards.INFO_NAME).exists()

"""Beam writes the same bytes, resumes, and reports failures; on Beam's local runner."""

import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from synthetic import CONVERSION_FLAGS, committed_bytes, faulty_read
from vidpipe.config import ClipConfig, ConversionConfig
from vidpipe.data import convert, shards, video

logging.disable(logging.WARNING)  # Beam logs every optional package that is not installed
convert_beam = pytest.importorskip("vidpipe.data.convert_beam", reason="apache-beam is not installed")
logging.disable(logging.NOTSET)

MakeConversion = Callable[..., ConversionConfig]
pytestmark = pytest.mark.processes


def test_beam_writes_the_same_bytes(tmp_path: Path, conversion: MakeConversion, data_dir: str) -> None:
    report = convert.convert(conversion(tmp_path / "out"), make_shards=convert_beam.make_shards_on([]))
    assert (report.written, report.skipped, report.shards_made, report.shards_kept) == (16, [], 5, 0)
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))
    assert sorted(path.name for path in (tmp_path / "out" / ".conversion").iterdir()) == sorted(
        path.name for path in (Path(data_dir) / ".conversion").iterdir()
    )


def test_separate_beam_workers_write_the_same_bytes(tmp_path: Path, video_dir: Path, data_dir: str) -> None:
    """As on a cluster, plans, settings and code are sent to processes that share only the folder."""
    tool = Path(__file__).parents[2] / "tools" / "convert_videos.py"
    beam_args = ["--", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    folders = [f"--video_dir={video_dir}", f"--output_dir={tmp_path / 'out'}"]
    command = [sys.executable, str(tool), *folders, *CONVERSION_FLAGS, "--runner=beam", *beam_args]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{tmp_path / 'out'}: 16 clips, 0 videos skipped; 5 shards written, 0 kept.\n"
    assert committed_bytes(tmp_path / "out") == committed_bytes(Path(data_dir))


def test_beam_resumes_a_local_conversion(tmp_path: Path, conversion: MakeConversion, data_dir: str) -> None:
    folder = Path(shutil.copytree(data_dir, tmp_path / "out"))
    (folder / shards.INFO_NAME).unlink()
    (folder / "train-00001-of-00002.tfrecord").unlink()
    report = convert.convert(conversion(folder), make_shards=convert_beam.make_shards_on([]))
    assert (report.shards_made, report.shards_kept) == (1, 4)
    assert committed_bytes(folder) == committed_bytes(Path(data_dir))


def test_a_bad_video_affects_only_itself(tmp_path: Path, video_dir: Path, conversion: MakeConversion) -> None:
    config = conversion(tmp_path / "out", max_skipped=0.5, timeout_sec=2)
    config = replace(config, manifest=replace(config.manifest, video_dir=str(video_dir / "train")))
    report = convert.convert(config, read=faulty_read, make_shards=convert_beam.make_shards_on([]))
    assert {each.video_id: each.message for each in report.skipped} == {
        "long/video_00.avi": f"crashed the decoder (exit code {-signal.SIGSEGV})",
        "long/video_01.avi": "timed out after 2 s",
        "long/video_02.avi": "worker has []",
    }
    assert report.written == 7


def broken_read(path: str, clip: ClipConfig, encoding: str, quality: int) -> video.EncodedClip:
    """Fails with an error of the code, not of a video."""
    raise ZeroDivisionError(path)


def test_a_pipeline_that_fails_is_reported_in_one_line(tmp_path: Path, conversion: MakeConversion) -> None:
    config, make_shards = conversion(tmp_path / "out"), convert_beam.make_shards_on([])
    message = r"The Beam pipeline failed: .*run the same command"
    with pytest.raises(convert.ConversionError, match=message) as raised:
        convert.convert(config, read=broken_read, make_shards=make_shards)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / shards.INFO_NAME).exists()

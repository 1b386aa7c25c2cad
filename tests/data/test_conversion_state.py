"""The state of a conversion: which shards are finished, and what is kept for the next run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf
from filelock import Timeout

from vidpipe.config import fingerprint
from vidpipe.data import conversion_state, shards
from vidpipe.data.conversion_plan import ShardPlan
from vidpipe.data.skip_reason import SkipReason
from vidpipe.data.video_row import VideoRow

PLAN = ShardPlan("train-00000-of-00001.tfrecord", (VideoRow("a.avi", "a.avi", "x", "train", "a.avi"),))


def _finish(folder: Path, **video: object) -> None:
    """Writes a shard and its state for the video a.avi."""
    (folder / "a.avi").write_bytes(b"video")
    info = shards.write_shard(folder / PLAN.name, [b"record"])
    source = conversion_state.source_state(str(folder), PLAN.rows[0])
    listed = {"video_id": "a.avi", "split": "train", "label": "x", "group": "a.avi"}
    row = listed | {"status": "ok", "source": source} | video
    (folder / conversion_state.STATE_DIR).mkdir()
    conversion_state.write_shard_state(str(folder), info, [row])


def _is_finished(folder: Path, plan: ShardPlan = PLAN) -> bool:
    return conversion_state.is_finished(str(folder), str(folder), plan)


def test_shard_state_round_trip(tmp_path: Path) -> None:
    _finish(tmp_path, frames_kept=4)
    info, (row,) = conversion_state.read_shard_state(str(tmp_path), PLAN)
    assert info.name == PLAN.name
    assert (row["video_id"], row["frames_kept"]) == ("a.avi", 4)
    assert _is_finished(tmp_path)
    assert not _is_finished(tmp_path, replace(PLAN, name="train-00001-of-00002.tfrecord"))


def _change_state(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Edits the state of a shard, with a valid digest: another program or version may have written it."""

    def edit(folder: Path) -> None:
        path = folder / conversion_state.STATE_DIR / f"{PLAN.name}.json"
        state = json.loads(path.read_text())
        del state["sha256"]
        change(state)
        path.write_text(json.dumps(state | {"sha256": fingerprint(state)}))

    return edit


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: (f / PLAN.name).unlink(), id="missing shard"),
        pytest.param(lambda f: (f / PLAN.name).write_bytes(b"other"), id="another size"),
        pytest.param(lambda f: (f / PLAN.name).write_bytes((f / PLAN.name).read_bytes()[::-1]), id="corrupt"),
        pytest.param(lambda f: (f / "a.avi").write_bytes(b"longer video"), id="changed video"),
        pytest.param(lambda f: (f / "a.avi").unlink(), id="deleted video"),
        pytest.param(_change_state(lambda state: state["videos"].clear()), id="another number of videos"),
        pytest.param(_change_state(lambda state: state["videos"][0].update(video_id="b.avi")), id="renamed"),
        pytest.param(_change_state(lambda state: state["videos"][0].update(label="y")), id="another label"),
        pytest.param(_change_state(lambda state: state["videos"][0].update(split="val")), id="another split"),
        pytest.param(_change_state(lambda state: state["shard"].update(name="b")), id="another shard"),
        pytest.param(_change_state(lambda state: state["videos"][0].pop("source")), id="incomplete row"),
        pytest.param(_change_state(lambda state: state["shard"].pop("bytes")), id="incomplete shard"),
        pytest.param(_change_state(lambda state: state.clear()), id="empty state"),
    ],
)
def test_a_changed_shard_or_video_is_not_finished(tmp_path: Path, change: Callable[[Path], object]) -> None:
    _finish(tmp_path)
    change(tmp_path)
    assert not _is_finished(tmp_path)


def test_a_corrupt_state_file_is_not_finished(tmp_path: Path) -> None:
    _finish(tmp_path)
    (tmp_path / conversion_state.STATE_DIR / f"{PLAN.name}.json").write_text("{")
    assert not _is_finished(tmp_path)


def test_no_flipped_bit_of_the_state_is_believed(tmp_path: Path) -> None:
    _finish(tmp_path, frames_kept=4)
    path = tmp_path / conversion_state.STATE_DIR / f"{PLAN.name}.json"
    state = path.read_bytes()
    for position in range(len(state) - 1):  # the last byte is a newline
        for bit in (1, 32):
            path.write_bytes(state[:position] + bytes([state[position] ^ bit]) + state[position + 1 :])
            assert not _is_finished(tmp_path), (position, bit)
    path.write_bytes(state)
    assert _is_finished(tmp_path)


@pytest.mark.parametrize("reason", list(SkipReason))
def test_a_video_skipped_for_a_retryable_reason_is_read_again(tmp_path: Path, reason: SkipReason) -> None:
    _finish(tmp_path, status="skipped", reason=reason.value, message="")
    assert _is_finished(tmp_path) == (not reason.is_retryable)


def test_retryable_reasons() -> None:
    transient = {SkipReason.CHANGED, SkipReason.TIMED_OUT, SkipReason.CRASHED}
    assert {reason for reason in SkipReason if reason.is_transient} == transient
    retryable = transient | {SkipReason.UNREADABLE, SkipReason.OUT_OF_MEMORY}
    assert {reason for reason in SkipReason if reason.is_retryable} == retryable


def test_a_reason_of_an_earlier_version_is_read_again(tmp_path: Path) -> None:
    _finish(tmp_path, status="skipped", reason="does not open as a video")
    assert not _is_finished(tmp_path)


def test_settings_round_trip(tmp_path: Path) -> None:
    (tmp_path / conversion_state.STATE_DIR).mkdir()
    assert conversion_state.read_settings(str(tmp_path)) is None
    conversion_state.write_settings(str(tmp_path), {"seed": 1})
    assert conversion_state.read_settings(str(tmp_path)) == {"seed": 1}
    Path(conversion_state.address_of(str(tmp_path), "plan.json")).write_text("{")
    assert conversion_state.read_settings(str(tmp_path)) is None


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_has_one_lock(tmp_path: Path, remote: bool) -> None:
    (tmp_path / conversion_state.STATE_DIR).mkdir()
    address = f"ram://{tmp_path.name}" if remote else str(tmp_path)
    with conversion_state.lock(address), pytest.raises(Timeout), conversion_state.lock(address):
        pass
    with conversion_state.lock(address), conversion_state.lock(f"ram://other-{tmp_path.name}"):
        pass


def test_temporary_files_of_a_killed_conversion_are_deleted(tmp_path: Path) -> None:
    _finish(tmp_path)
    names = (f"{PLAN.name}.0123.tmp", f"{conversion_state.STATE_DIR}/plan.json.0123.tmp")
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    conversion_state.delete_temporary_files(str(tmp_path))
    assert not list(tmp_path.rglob("*.tmp"))
    assert _is_finished(tmp_path)
    assert not tf.io.gfile.exists("ram://nowhere")
    conversion_state.delete_temporary_files("ram://nowhere")

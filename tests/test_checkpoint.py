"""A checkpoint comes back to the bit, and a damaged one costs only the steps since the one before."""

from pathlib import Path

import keras
import numpy as np
import pytest

from vidpipe.checkpoint import CheckpointError, restore_checkpoint, save_checkpoint


def _variables(value: float) -> list[keras.Variable]:
    seed = keras.random.SeedGenerator(int(value)).state
    return [keras.Variable(np.full((2, 3), value, np.float32)), seed]


def test_round_trip(tmp_path: Path) -> None:
    state = {"epoch": 2, "best_loss": 0.1 + 0.2, "history": [{"loss": None}]}
    save_checkpoint(tmp_path, 7, _variables(1 / 3), state, keep=2)
    restored = _variables(0)
    assert restore_checkpoint(tmp_path, restored) == state
    for ours, theirs in zip(restored, _variables(1 / 3), strict=True):
        assert (ours.numpy() == theirs.numpy()).all()


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert restore_checkpoint(tmp_path / "nowhere", _variables(0)) is None


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (9, 10, 11):
        save_checkpoint(tmp_path, step, _variables(step), {}, keep)
    newest = ["step-00000010.npz", "step-00000011.npz"][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == newest


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_not_saved(tmp_path: Path, value: float) -> None:
    save_checkpoint(tmp_path, 1, _variables(1), {"step": 1}, keep=1)
    bad = _variables(1)
    bad[0].assign(np.array([[1, value, 1], [1, 1, 1]], np.float32))
    with pytest.raises(CheckpointError, match=f"After step 2 .* is no number.* is kept in {tmp_path}"):
        save_checkpoint(tmp_path, 2, bad, {"step": 2}, keep=1)
    assert restore_checkpoint(tmp_path, _variables(0)) == {"step": 1}


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_newest_one_falls_back(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, _variables(step), {"step": step}, keep=2)
    newest = tmp_path / "step-00000002.npz"
    data = bytearray(newest.read_bytes())
    if damage == "flipped":
        data[data.index(np.float32(2).tobytes() * 3)] ^= 1
    newest.write_bytes(data[: {"cut": len(data) // 2, "flipped": len(data), "empty": 0}[damage]])
    restored = _variables(0)
    assert restore_checkpoint(tmp_path, restored) == {"step": 1}
    assert (restored[0].numpy() == 1).all()
    assert "step-00000002.npz is damaged" in caplog.text

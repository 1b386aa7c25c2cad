"""A restored checkpoint is bit-identical, and a corrupt one costs only the steps since the one before."""

from pathlib import Path

import keras
import numpy as np
import pytest

from vidpipe.training.checkpoint import (
    CheckpointError,
    read_state,
    restore_checkpoint,
    restore_step,
    save_checkpoint,
)
from vidpipe.training.run_folder import RunFolder


def _variables(value: float) -> list[keras.Variable]:
    seed = keras.random.SeedGenerator(int(value)).state
    return [keras.Variable(np.full((2, 3), value, np.float32)), seed]


def _save(folder: RunFolder, step: int, keep: int = 2) -> None:
    save_checkpoint(folder, step=step, variables=_variables(step), state={"step": step}, keep=keep)


def test_round_trip(tmp_path: Path) -> None:
    state = {"epoch": 2, "best_loss": 0.1 + 0.2, "history": [{"loss": None}]}
    folder = RunFolder(tmp_path)
    save_checkpoint(folder, step=7, variables=_variables(1 / 3), state=state, keep=2)
    restored = _variables(0)
    assert restore_checkpoint(folder, restored) == state
    for ours, theirs in zip(restored, _variables(1 / 3), strict=True):
        assert (ours.numpy() == theirs.numpy()).all()


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert restore_checkpoint(RunFolder(tmp_path / "nowhere"), _variables(0)) is None


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    folder = RunFolder(tmp_path)
    for step in (9, 10, 11):
        _save(folder, step, keep)
    newest = ["step-00000010.npz", "step-00000011.npz"][-keep:]
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == newest


def test_other_files_are_neither_restored_nor_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _save(folder, 1, keep=1)
    for name in ("step-00000009.npz.tmp", "step-9.npz", "step-best.npz"):
        (folder.checkpoints / name).write_bytes(b"")
    _save(folder, 2, keep=1)
    assert len(list(folder.checkpoints.iterdir())) == 4
    assert restore_checkpoint(folder, _variables(0)) == {"step": 2}


def test_a_checkpoint_is_flushed_to_the_disk(tmp_path: Path, synced: set[int]) -> None:
    folder = RunFolder(tmp_path)
    _save(folder, 1)
    assert {folder.checkpoint(1).stat().st_ino, folder.checkpoints.stat().st_ino} <= synced


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_are_not_saved(tmp_path: Path, value: float) -> None:
    folder = RunFolder(tmp_path)
    _save(folder, 1, keep=1)
    bad = _variables(1)
    bad[0].assign(np.array([[1, value, 1], [1, 1, 1]], np.float32))
    with pytest.raises(CheckpointError, match=f"is non-finite .* after step 2.* are kept in {tmp_path}"):
        save_checkpoint(folder, step=2, variables=bad, state={"step": 2}, keep=1)
    assert restore_checkpoint(folder, _variables(0)) == {"step": 1}


@pytest.mark.parametrize("corruption", ["cut", "flipped", "empty"])
def test_a_corrupt_checkpoint_is_skipped(
    tmp_path: Path, corruption: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        _save(folder, step)
    newest = folder.checkpoint(2)
    data = bytearray(newest.read_bytes())
    if corruption == "flipped":
        data[data.index(np.float32(2).tobytes() * 3)] ^= 1
    newest.write_bytes(data[: {"cut": len(data) // 2, "flipped": len(data), "empty": 0}[corruption]])
    restored = _variables(0)
    assert restore_checkpoint(folder, restored) == {"step": 1}
    assert (restored[0].numpy() == 1).all()
    assert "step-00000002.npz is corrupt" in caplog.text


def test_corrupt_checkpoints_are_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2):
        _save(folder, step)
        folder.checkpoint(step).write_bytes(folder.checkpoint(step).read_bytes()[:-40])
    for read in (read_state, lambda folder: restore_checkpoint(folder, _variables(0))):
        with pytest.raises(CheckpointError, match=f"^All checkpoints of {tmp_path} are corrupt"):
            read(folder)


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (2,), ()], [(3, 2), (2,)]])
def test_a_checkpoint_of_another_model_is_an_error(tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
    folder = RunFolder(tmp_path)
    _save(folder, 1)
    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in shapes]
    for restore in (
        lambda: restore_checkpoint(folder, variables),
        lambda: restore_step(folder, 1, variables),
    ):
        with pytest.raises(CheckpointError, match="are those of another model"):
            restore()
    assert all((variable.numpy() == 0).all() for variable in variables)


def test_the_checkpoint_of_the_selected_epoch_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, selected in ((1, 1), (2, 1), (3, 1), (4, 3), (5, 3)):
        save_checkpoint(
            folder, step=step, variables=_variables(step), state={}, keep=1, selected_step=selected
        )
    assert [path.name for path in folder.checkpoint_paths()] == ["step-00000003.npz", "step-00000005.npz"]
    variables = _variables(0)
    restore_step(folder, 3, variables)
    assert (variables[0].numpy() == 3).all()

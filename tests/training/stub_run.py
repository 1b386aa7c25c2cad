"""A run of the training loop on a tiny model and numpy data: no dataset, no backbone, no pictures."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vidpipe.config import OptimizerConfig, TrainConfig, to_dict
from vidpipe.training.batches import Batches
from vidpipe.training.epoch_selection import History
from vidpipe.training.epoch_steps import EpochSteps
from vidpipe.training.head_fit import HeadFit
from vidpipe.training.loop import Loop
from vidpipe.training.optimizer import build_optimizer
from vidpipe.training.run_folder import RunFolder
from vidpipe.training.run_log import RunLog
from vidpipe.training.stop_signal import StopSignal
from vidpipe.training.trainee import Trainee
from vidpipe.training.validation import Validation

NUM_CLIPS, NUM_VAL_CLIPS, NUM_FEATURES, NUM_CLASSES = 8, 5, 4, 3
_RANDOM = np.random.default_rng(0)
FEATURES = _RANDOM.normal(size=(NUM_CLIPS + NUM_VAL_CLIPS, NUM_FEATURES)).astype(np.float32)
LABEL = (np.arange(NUM_CLIPS + NUM_VAL_CLIPS) % NUM_CLASSES).astype(np.int32)


class RecordingLog(RunLog):
    """Keeps what the loop gives it, and writes history.csv only."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.calls: list[dict[str, Any]] = []

    def write(
        self, history: History, validation: Validation | None, *, is_last: bool, loss_scale: float | None
    ) -> None:
        """Keeps the arguments."""
        self._folder.write_history(history)
        self.calls.append({"validation": validation, "is_last": is_last, "loss_scale": loss_scale})


@dataclass
class StubRun:
    """A run and what it did.

    Attributes:
      config, trainee, batches, folder, stop, log: its parts.
      loop: to be run.
      events: "prepare" and "refresh", as the loop called them.
      prepared_on: the inputs that `prepare` got.
      saved: the model's weights at each call of `save_model`.
    """

    config: TrainConfig
    trainee: Trainee
    batches: Batches
    folder: RunFolder
    stop: StopSignal
    log: RecordingLog
    head_fit: HeadFit
    loop: Loop
    events: list[str]
    prepared_on: list[Mapping[str, Any]]
    saved: list[list[np.ndarray]] = field(default_factory=list)

    def history(self) -> list[dict[str, Any]]:
        """The rows of history.csv, without those columns that are measured times."""
        times = ("seconds", "data_wait")
        return [
            {name: value for name, value in row.items() if name not in times}
            for row in self.folder.read_history()
        ]

    def checkpoint_names(self) -> list[str]:
        """The files in checkpoints/."""
        return sorted(path.name for path in self.folder.checkpoints.glob("*"))


def stub_run(
    run_dir: Path,
    *,
    stop: StopSignal | None = None,
    features: np.ndarray = FEATURES,
    has_val: bool = True,
    precision: str = "float32",
    log: Callable[[RunFolder], RunLog] | None = None,
    **settings: Any,
) -> StubRun:
    """Makes a run of 3 epochs of 3 steps on 8 clips.

    Args:
      run_dir: made.
      stop: None makes one that no signal reaches.
      features: float32 [NUM_CLIPS + NUM_VAL_CLIPS, NUM_FEATURES].
      has_val: whether there is a validation split.
      precision: of the optimizer.
      log: None makes a RecordingLog.
      settings: of the TrainConfig.
    """
    defaults: dict[str, Any] = {
        "epochs": 3, "batch_size": 3, "label_smoothing": 0.0,
        "optimizer": OptimizerConfig(learning_rate=0.05, ema=0.0),
    }  # fmt: skip
    config = TrainConfig(data_dir="records", run_dir=str(run_dir), **(defaults | settings))
    folder, stop = RunFolder(run_dir), stop or StopSignal()
    run_dir.mkdir(parents=True, exist_ok=True)
    events: list[str] = []
    prepared_on: list[Mapping[str, Any]] = []
    trainee = stub_trainee(config, precision, events)
    batches = stub_batches(config, features, has_val=has_val)
    epoch_steps = EpochSteps(
        config,
        trainee=trainee,
        batches=batches,
        folder=folder,
        class_weights=np.ones(NUM_CLASSES, np.float32),
        stop=stop,
    )
    recording, head_fit = RecordingLog(folder), StubHeadFit(events, prepared_on)
    saved: list[list[np.ndarray]] = []

    def save_model() -> None:
        saved.append(trainee.model.get_weights())
        with zipfile.ZipFile(folder.model, "w") as archive:
            archive.writestr("weights", b"".join(array.tobytes() for array in saved[-1]))

    loop = Loop(
        config,
        trainee=trainee,
        batches=batches,
        epoch_steps=epoch_steps,
        head_fit=head_fit,
        folder=folder,
        stop=stop,
        settings=to_dict(config),
        save_model=save_model,
        run_log=recording if log is None else log(folder),
    )
    return StubRun(
        config, trainee, batches, folder, stop, recording, head_fit, loop, events, prepared_on, saved
    )


class StubHeadFit(HeadFit):
    """Fits nothing, and records what it was asked for."""

    def __init__(self, events: list[str], prepared_on: list[Mapping[str, Any]]) -> None:
        self._events, self._prepared_on = events, prepared_on

    def start(self, first_inputs: Iterator[Mapping[str, Any]]) -> None:
        self._events.append("start")
        self._prepared_on.extend(first_inputs)

    def resume(self) -> None:
        self._events.append("resume")

    def update(self) -> None:
        pass


def stub_trainee(config: TrainConfig, precision: str, events: list[str]) -> Trainee:
    """Two ensemble members, each a linear model behind dropout."""
    keras.utils.set_random_seed(config.seed)
    features = keras.Input((NUM_FEATURES,), name="features")
    dropped = keras.layers.Dropout(0.2, name="stub_dropout")(features)
    logits = keras.layers.Dense(2 * NUM_CLASSES, name="stub_dense")(dropped)
    members = keras.layers.Reshape((2, NUM_CLASSES), name="stub_members")(logits)
    average = keras.layers.GlobalAveragePooling1D(name="stub_average")(members)
    model = keras.Model({"features": features}, average)
    optimizer = build_optimizer(config.optimizer, model.trainable_variables, scales={}, precision=precision)

    return Trainee(
        model=model,
        ensemble=keras.Model({"features": features}, members),
        answers=keras.Model({"features": features}, [average, average]),
        is_cross_fitted=False,
        clips_per_call=NUM_CLIPS,
        saved=model,
        optimizer=optimizer,
        strategy=tf.distribute.get_strategy(),
        checkpointed=[*model.variables, *optimizer.variables],
        refresh=lambda: events.append("refresh"),
    )


def epoch_order(config: TrainConfig, epoch: int) -> np.ndarray:
    """The indices of an epoch's clips, int64 [NUM_CLIPS]."""
    return np.random.default_rng([config.seed, epoch]).permutation(NUM_CLIPS)


def stub_batches(config: TrainConfig, features: np.ndarray, *, has_val: bool) -> Batches:
    """The first 8 clips are of train, the others of val."""
    assert config.batch_size is not None
    batch_size = config.batch_size

    def batched(indices: np.ndarray) -> tf.data.Dataset:
        clips = features[indices], LABEL[indices], np.ones(len(indices), np.float32)
        missing = -len(indices) % batch_size
        padded = [
            np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)]) for values in clips
        ]
        rows = {"features": padded[0]}, *padded[1:]
        return tf.data.Dataset.from_tensor_slices(rows).batch(batch_size, drop_remainder=True)

    def train(epoch: int, skip: int, num_workers: int, worker: int) -> tf.data.Dataset:
        return batched(epoch_order(config, epoch)).skip(skip)

    def val(num_workers: int, worker: int) -> tf.data.Dataset:
        return batched(np.arange(NUM_CLIPS, NUM_CLIPS + NUM_VAL_CLIPS))

    def first_inputs() -> Iterator[dict[str, Any]]:
        yield {"features": features[:NUM_CLIPS]}

    def clips_of_step(epoch: int, step: int) -> str:
        indices = epoch_order(config, epoch)[step * batch_size : (step + 1) * batch_size]
        return ", ".join(f"clip_{index}" for index in indices)

    return Batches(
        batch_size=batch_size,
        num_clips=NUM_CLIPS,
        train=train,
        val=val if has_val else None,
        first_inputs=first_inputs,
        train_in_order=lambda: batched(np.arange(NUM_CLIPS)),
        clips_of_step=clips_of_step,
    )

"""The rows of the accuracy table: how each method is trained, and its probabilities for the test clips.

TensorFlow is imported inside the functions that use it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from accuracy_data import FORWARD_CLIPS, Data
from vidpipe.config import EvaluationConfig, TrainConfig, to_dict
from vidpipe.training.recipes import RECIPES

if TYPE_CHECKING:
    from vidpipe.model.feature_cache import FeatureTable
    from vidpipe.model.heads import MemberBuilder

_NOTEBOOK_BATCH, _NOTEBOOK_EPOCHS, _NOTEBOOK_VAL = 64, 10, 0.1

# Data, seed and a folder for the run -> the probabilities of the test clips, float [N, C].
Fit = Callable[[Data, int, Path], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A way of training.

    Attributes:
      label: its name in the table.
      fit: trains and predicts.
      is_notebook: whether it is the method that vidpipe replaces. It takes only datasets with
        --sampling=head, and the other rows are compared with it.
      trains_backbone: whether it trains convolutions: it takes long, and cannot be cross-validated.
      pixel_differences: whether it takes the features of these, too.
    """

    label: str
    fit: Fit
    is_notebook: bool = False
    trains_backbone: bool = False
    pixel_differences: bool = False


def fit_probe(data: Data, seed: int, run_dir: Path, *, deviation: bool) -> np.ndarray:
    """Fits a logistic regression to the mean absolute difference of successive frames' features.

    With `deviation` also to the standard deviation over time.
    """
    del seed, run_dir
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def statistics(table: "FeatureTable") -> np.ndarray:
        real = table.mask[:, :, np.newaxis]
        change = np.abs(np.diff(table.features, axis=1)) * real[:, 1:]
        found = [change.sum(axis=1) / real[:, 1:].sum(axis=1).clip(1)]
        if deviation:
            found.append(np.std(table.features, axis=1, where=np.broadcast_to(real, table.features.shape)))
        return np.concatenate(found, axis=1)

    train, _ = data.train_and_val()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=3000))
    probabilities: np.ndarray = probe.fit(statistics(train), train.label).predict_proba(
        statistics(data.tables["test"])
    )
    return probabilities


def fit_notebook(data: Data, seed: int, run_dir: Path, *, shuffled: bool) -> np.ndarray:
    """Fits the head as the Keras CNN-RNN example does."""
    import keras
    from keras import layers

    from vidpipe.model.heads import notebook_head

    keras.utils.set_random_seed(seed)
    train, _ = data.train_and_val()
    order = np.random.default_rng(seed).permutation(len(train.label)) if shuffled else slice(None)
    features = keras.Input(train.features.shape[1:])
    mask = keras.Input(train.mask.shape[1:], dtype="bool")
    probabilities = layers.Dense(len(data.dataset.classes), activation="softmax")
    model = keras.Model([features, mask], probabilities(notebook_head(features, mask)(0)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    run_dir.mkdir(parents=True, exist_ok=True)
    best = f"{run_dir}/best.weights.h5"
    model.fit(
        [train.features[order], train.mask[order]],
        train.label[order],
        _NOTEBOOK_BATCH,
        _NOTEBOOK_EPOCHS,
        verbose=0,
        validation_split=_NOTEBOOK_VAL,
        callbacks=[keras.callbacks.ModelCheckpoint(best, save_best_only=True, save_weights_only=True)],
    )
    model.load_weights(best)
    test = data.tables["test"]
    return model.predict([test.features, test.mask], verbose=0)


def fit_frozen(data: Data, seed: int, run_dir: Path, **model: Any) -> np.ndarray:
    """Trains the recipe `frozen` on all stored frames, with other settings of the model."""
    if not _is_finished(run_dir):
        train_head(run_config("frozen", data, seed, run_dir, **model), data)
    return predict_test(run_dir, data)


def fit_part(data: Data, seed: int, run_dir: Path, *, part: str) -> np.ndarray:
    """Takes one part of the motion run of the same seed: its linear part, or its network, alone."""
    motion = _same_run_of("motion", run_dir)
    if not _is_finished(motion):
        fit_frozen(data, seed, motion)
    return predict_test(motion, data, part=part)


def fit_shuffled_frames(data: Data, seed: int, run_dir: Path) -> np.ndarray:
    """Trains the recipe `frozen` with a network that sees frames in a meaningless order."""
    from vidpipe.model.heads import HEADS

    shuffled = replace(HEADS["motion"], build=shuffled_frames_head)
    with mock.patch.dict(HEADS, motion=shuffled):
        return fit_frozen(data, seed, run_dir)


def fit_random_frames(data: Data, seed: int, run_dir: Path, *, temporal_crops: int) -> np.ndarray:
    """Trains the recipe `frozen` on half of the stored frames, sampled randomly in each epoch.

    Evaluations with several numbers of temporal crops share one run.
    """
    run_dir = _same_run_of("random_frames", run_dir)
    config = run_config("frozen", data, seed, run_dir)
    config = replace(config, num_frames=math.ceil(data.dataset.clip.num_frames / 2))
    if not _is_finished(run_dir):
        train_head(config, data)
    return predict_test(run_dir, data, num_frames=config.num_frames, temporal_crops=temporal_crops)


def fit_fine_tuned(data: Data, seed: int, run_dir: Path, *, block: str, augment: str = "none") -> np.ndarray:
    """Trains the recipe `fine_tune` from the motion run of the same seed; evaluates it on frames."""
    from vidpipe.evaluation.evaluate import evaluate
    from vidpipe.storage.files import probability_column
    from vidpipe.training.run_folder import RunFolder
    from vidpipe.training.train import train

    frozen = _same_run_of("motion", run_dir)
    if not _is_finished(frozen):
        fit_frozen(data, seed, frozen)
    config = run_config("fine_tune", data, seed, run_dir, fine_tune=block)
    train(replace(config, init_from=str(frozen), augment=augment))
    evaluate(EvaluationConfig(run_dir=str(run_dir), data_dir=data.dataset.data_dir))
    rows = RunFolder(run_dir).evaluation("test").read_predictions()
    columns = [probability_column(name) for name in data.dataset.classes]
    return np.array([[float(row[name]) for name in columns] for row in rows])


def run_config(recipe: str, data: Data, seed: int, run_dir: Path, **model: Any) -> TrainConfig:
    """Returns the settings of `train.py --recipe`, with other settings of the model."""
    config = RECIPES[recipe].train_config(data_dir=data.dataset.data_dir, run_dir=str(run_dir))
    model_config = replace(config.model, backbone_weights=data.backbone_weights, **model)
    return replace(config, model=model_config, seed=seed)


def train_head(config: TrainConfig, data: Data) -> None:
    """Trains a frozen run from the features in memory, as `train.train` does from cached features."""
    import keras
    import tensorflow as tf

    from vidpipe.model.model_file import ModelMetadata, save_model
    from vidpipe.training.batches import feature_batches
    from vidpipe.training.epoch_steps import EpochSteps
    from vidpipe.training.head_fit import HeadFit, TrainingClips, cross_fitting_folds, member_weights
    from vidpipe.training.loop import Loop
    from vidpipe.training.run_folder import RunFolder
    from vidpipe.training.stop_signal import StopSignal
    from vidpipe.training.trainee import build_trainee

    assert config.batch_size is not None
    dataset, folder, stop = data.dataset, RunFolder(Path(config.run_dir)), StopSignal()
    num_frames = dataset.clip.resolve_num_frames(config.num_frames)
    keras.utils.set_random_seed(config.seed)
    trainee, _ = build_trainee(
        config, dataset, num_frames=num_frames, strategy=tf.distribute.get_strategy(), precision="float32"
    )
    table, videos = data.tables["train"], data.videos["train"]
    video_ids, group = videos["video_id"].tolist(), videos["group"].tolist()
    fold = None
    if trainee.is_cross_fitted:
        fold = cross_fitting_folds(table.label, group, trainee.ensemble_size)
    class_weights = np.ones(len(dataset.classes), np.float32)
    batches = feature_batches(
        data.tables,
        dataset,
        video_ids=video_ids,
        batch_size=config.batch_size,
        seed=config.seed,
        num_frames=num_frames,
        weight=None if fold is None else member_weights(fold, trainee.ensemble_size),
    )
    clips = TrainingClips(
        batches=batches.train_in_order, video_ids=video_ids, group=group, class_weights=class_weights
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    epoch_steps = EpochSteps(
        config,
        trainee=trainee,
        batches=batches,
        folder=folder,
        class_weights=class_weights,
        stop=stop,
    )
    metadata = ModelMetadata(dataset.classes, dataset.clip, num_frames)
    Loop(
        config,
        trainee=trainee,
        batches=batches,
        epoch_steps=epoch_steps,
        head_fit=HeadFit(trainee.model, config.model.head, clips, fold),
        folder=folder,
        stop=stop,
        settings=to_dict(config),
        save_model=lambda: save_model(trainee.saved, metadata, folder.model),
        run_log=None,
    ).run()


def predict_test(
    run_dir: Path,
    data: Data,
    *,
    num_frames: int | None = None,
    temporal_crops: int = 1,
    part: str = "both",
) -> np.ndarray:
    """Computes a frozen run's probabilities for the test clips, the mean over their crops: float32 [N, C].

    Args:
      run_dir: of the run.
      data: its test clips.
      num_frames: frames of a clip; None for all stored ones.
      temporal_crops: of a clip.
      part: of the head: `both`, or `linear` or `network` alone.
    """
    import tensorflow as tf

    from vidpipe.model.feature_dataset import eval_feature_dataset
    from vidpipe.model.heads import SHARES, classifier
    from vidpipe.model.model_file import load_model
    from vidpipe.training.run_folder import RunFolder

    model, _ = load_model(RunFolder(run_dir).model)
    if part != "both":
        model.get_layer(SHARES).kernel.assign([1.0, 0.0] if part == "linear" else [0.0, 1.0])
    classify = classifier(model)
    batches = eval_feature_dataset(
        data.tables["test"],
        batch_size=FORWARD_CLIPS,
        num_frames=data.dataset.clip.resolve_num_frames(num_frames),
        temporal_crops=temporal_crops,
    )
    logits = [classify(inputs, training=False)[weight > 0] for inputs, _, weight in batches]
    probabilities = tf.nn.softmax(tf.concat(logits, axis=0)).numpy()
    return probabilities.reshape(-1, temporal_crops, probabilities.shape[-1]).mean(axis=1)


def shuffled_frames_head(features: Any, mask: Any, dropout: float | None = None) -> "MemberBuilder":
    """Builds a control head: the motion head on frames in a meaningless order, fixed for each clip."""
    from keras import ops

    from vidpipe.model.heads import motion_head

    # The far digits of a sum of features: as good as random, and without state.
    key = 1e4 * ops.sum(ops.cast(features, "float32"), axis=-1)
    order = ops.argsort(ops.where(mask, key - ops.floor(key), 2.0), axis=1)
    return motion_head(ops.take_along_axis(features, order[:, :, None], axis=1), mask, dropout)


def _is_finished(run_dir: Path) -> bool:
    from vidpipe.training.run_folder import RunFolder

    return RunFolder(run_dir).is_finished


def _same_run_of(method: str, run_dir: Path) -> Path:
    """Returns the run folder of another method, for the same seed and fold."""
    return run_dir.parents[2] / method / run_dir.parent.name / run_dir.name


# By the name that --rows takes.
METHODS: dict[str, Method] = {
    "notebook": Method("notebook as listed", partial(fit_notebook, shuffled=False), is_notebook=True),
    "notebook_shuffled": Method("notebook shuffled", partial(fit_notebook, shuffled=True), is_notebook=True),
    "probe": Method("logistic regression, change", partial(fit_probe, deviation=False)),
    "probe_deviation": Method(
        "logistic regression, change and deviation", partial(fit_probe, deviation=True)
    ),
    "motion": Method("motion", fit_frozen),
    "linear": Method("motion, linear part alone", partial(fit_part, part="linear")),
    "network": Method("motion, network alone", partial(fit_part, part="network")),
    "pixel_differences": Method(
        "motion, pixel differences too", partial(fit_frozen, pixel_differences=True), pixel_differences=True
    ),
    "ensemble_of_1": Method("motion, ensemble of 1", partial(fit_frozen, ensemble_size=1)),
    "notebook_head": Method("notebook's head, recipe frozen", partial(fit_frozen, head="notebook")),
    "random_frames": Method("random frames", partial(fit_random_frames, temporal_crops=1)),
    "temporal_crops": Method("random frames, 2 temporal crops", partial(fit_random_frames, temporal_crops=2)),
    "shuffled_frames": Method("control: motion on shuffled frames", fit_shuffled_frames),
    "block5": Method("block5", partial(fit_fine_tuned, block="block5"), trains_backbone=True),
    "block4": Method("block4", partial(fit_fine_tuned, block="block4"), trains_backbone=True),
    "block5_flip": Method(
        "block5, random flips", partial(fit_fine_tuned, block="block5", augment="flip"), trains_backbone=True
    ),
    "block4_flip": Method(
        "block4, random flips", partial(fit_fine_tuned, block="block4", augment="flip"), trains_backbone=True
    ),
}

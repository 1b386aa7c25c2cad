"""A trained model for serving: a SavedModel or a TFLite file, checked against the model on real clips."""

import errno
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from vidpipe import evaluate, input_pipeline, records, remote, shard_cache, shards, verify
from vidpipe.config import ClipConfig
from vidpipe.model import CARD_NAME, ModelCard, classifier, load_model, refresh_standardization
from vidpipe.progress import Progress
from vidpipe.spec import VidpipeError

QUANTIZATIONS = ("none", "dynamic_range")
LABELS_NAME = "labels.txt"

# How far a class's probability may be from the model's. What is usual is in BUILD_NOTES.md.
SAVED_MODEL_BOUND = 1e-5
TFLITE_BOUNDS = {"none": 1e-4, "dynamic_range": 0.1}

_CHECKED_CLIPS = 16
_BATCH_SIZE = 4

_Batch = dict[str, np.ndarray]
_Classify = Callable[[_Batch], np.ndarray]


class ExportError(VidpipeError):
    """What is asked for cannot be written, or is not what the model is."""


@dataclass(frozen=True)
class OpenRun:
    """A run's model and a dataset that goes with it.

    Attributes:
      model, card: of its model.keras.
      folder: where the dataset is read.
      info: of the dataset.
    """

    model: keras.Model
    card: ModelCard
    folder: str
    info: shards.DatasetInfo


@dataclass(frozen=True)
class Check:
    """How near something is to the model, on real clips.

    Attributes:
      what: was compared.
      largest_difference: of any class's probability in any clip.
      same_class: clips whose most probable class is the model's.
      clips: all that were compared.
    """

    what: str
    largest_difference: float
    same_class: int
    clips: int

    def __str__(self) -> str:
        return (
            f"{self.what}: largest difference of a probability {self.largest_difference:.1e}, the same class "
            f"predicted for {self.same_class} of {self.clips} clips"
        )


def open_run(run_dir: str, data_dir: str, split: str, cache_dir: str | None) -> OpenRun:
    """Loads a run's `model.keras` and makes a split of a dataset ready to be read.

    Raises:
      EvaluateError: the classes or the clips' shape are not those the model was trained on.
      ModelError, ShardError: the model or the dataset cannot be read.
    """
    model, card = load_model(Path(run_dir) / "model.keras")
    with verify.named_damage(data_dir):
        folder = shard_cache.open_dataset(data_dir, cache_dir)
        info = shards.read_info(folder)
    evaluate.check_dataset(card, info, data_dir)
    with verify.named_damage(data_dir):
        shard_cache.fetch_shards(data_dir, folder, info, split)
    return OpenRun(model, card, folder, info)


def export_saved_model(
    run_dir: str, data_dir: str, split: str, path: str, cache_dir: str | None = None
) -> list[Check]:
    """Writes a run's model as a SavedModel, which TensorFlow loads by itself.

    It has two signatures. Both give `probabilities` float32 [B, C] and, for clients that see nothing else,
    `labels` string [B, C], the class of each.

    - `jpeg`, also `serving_default`, takes `jpeg` string [B, n], n <= T: the frames of each clip as JPEG
      files, with empty strings behind those of a shorter clip. They may have any size, and are cropped and
      resized as the converter does, within one level of it.
    - `frames` takes `frames` uint8 [B, T, H, W, 3], RGB, and `mask` bool [B, T], True for real frames, which
      come first.

    Its folder `assets` has `labels.txt`, a class per line, and `vidpipe.json`, with the clip settings too. It
    computes as `portable_model` says.

    Args:
      run_dir: a run with a model.keras.
      data_dir: a committed dataset of the same classes and clip settings.
      split: the export is checked on its first clips.
      path: a local folder; it appears there when it has passed, and replaces an older export.
      cache_dir: a remote data_dir is copied here once; None reads it from where it lies.

    Returns:
      How near each signature is to the model; and how near float32 is to a model of half precision.

    Raises:
      ExportError: the path cannot be written, something else is there, or the export is not the model.
      EvaluateError, ModelError, ShardError: as `open_run`.
    """
    with _replaced(path, _is_saved_model) as new:
        run = open_run(run_dir, data_dir, split, cache_dir)
        model = portable_model(run.model)
        _write_saved_model(model, run.card, new)
        signatures = tf.saved_model.load(str(new)).signatures
        clips = _first_clips(run, data_dir, split)
        jpegs, decoded = zip(*map(_as_jpeg, clips), strict=True)
        expected = _probabilities("model", _of_model(model), clips)
        served = _probabilities("frames", lambda batch: signatures["frames"](**batch)["probabilities"], clips)
        checks = [_checked("frames", expected, served, SAVED_MODEL_BOUND)]
        expected_of_jpeg = _probabilities("model", _of_model(model), decoded)
        served = _probabilities("jpeg", lambda batch: signatures["jpeg"](**batch)["probabilities"], jpegs)
        checks.append(_checked("jpeg", expected_of_jpeg, served, SAVED_MODEL_BOUND))
        return checks + _against_half_precision(run.model, clips, expected)


def export_tflite(
    run_dir: str, data_dir: str, split: str, path: str, quantization: str, cache_dir: str | None = None
) -> list[Check]:
    """Writes a run's model as a TFLite file of built-in operations.

    It takes one clip: `frames` uint8 [1, T, H, W, 3], RGB, and `mask` bool [1, T], True for real frames,
    which come first; it gives `probabilities` float32 [1, C]. All T frames pass through the backbone, since
    shapes are fixed, and what it makes of those that are not real is zeroed. Behind the model's bytes is a
    zip archive, as TFLite's metadata has it: `labels.txt`, a class per line, and `vidpipe.json`.

    Args:
      run_dir: as for `export_saved_model`.
      data_dir: likewise.
      split: likewise.
      path: a local file; it appears there when it has passed the check, and replaces an older export.
      quantization: `dynamic_range` stores weights in 8 bits, a quarter of the size, and is less exact.
      cache_dir: as for `export_saved_model`.

    Returns:
      How near it is to the model; and how near float32 is to a model of half precision.

    Raises:
      ExportError, EvaluateError, ModelError, ShardError: as `export_saved_model`.
    """
    with _replaced(path, _is_tflite) as new:
        run = open_run(run_dir, data_dir, split, cache_dir)
        model = portable_model(run.model)
        _write_tflite(model, run.card, quantization, new)
        clips = _first_clips(run, data_dir, split)
        expected = _probabilities("model", _of_model(model), clips)
        served = _probabilities("TFLite", _of_tflite(new), clips)
        check = _checked(
            f"TFLite, quantization {quantization}", expected, served, TFLITE_BOUNDS[quantization]
        )
        return [check, *_against_half_precision(run.model, clips, expected)]


def portable_model(model: keras.Model) -> keras.Model:
    """The same layers and weights, to compute alike everywhere: in float32 and without cuDNN's LSTM.

    Half precision is slow or unknown where there is no GPU for it; and an LSTM that is traced on a machine
    with a GPU becomes cuDNN's, which no other machine has.
    """
    text = model.to_json()
    for half in ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16"):
        text = text.replace(f'"{half}"', '"float32"')
    portable = keras.models.model_from_json(text)
    portable.set_weights(model.get_weights())
    refresh_standardization(portable)
    for layer in portable.get_layer("head").layers:
        if isinstance(layer, keras.layers.LSTM):
            layer.use_cudnn = False
    return portable


def _write_saved_model(model: keras.Model, card: ModelCard, folder: Path) -> None:
    spec = card.spec
    labels = tf.constant([card.classes])

    def answer(frames: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = model({"frames": frames, "mask": mask}, training=False)
        return {"probabilities": tf.nn.softmax(logits), "labels": tf.tile(labels, [tf.shape(logits)[0], 1])}

    def of_frames(frames: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        _assert_real_frames_first(mask)
        return answer(frames, mask)

    def of_jpeg(jpeg: tf.Tensor) -> dict[str, tf.Tensor]:
        real = jpeg != ""
        _assert_real_frames_first(real)
        tf.debugging.assert_less_equal(tf.shape(jpeg)[1], spec.num_frames, "too many frames in a clip")
        frames = tf.map_fn(
            lambda file: _stored_frame(file, card.clip),
            tf.boolean_mask(jpeg, real),
            fn_output_signature=tf.TensorSpec([spec.height, spec.width, 3], tf.uint8),
        )
        counts = tf.reduce_sum(tf.cast(real, tf.int64), axis=1)
        clips = tf.RaggedTensor.from_row_lengths(frames, counts)
        padded = clips.to_tensor(shape=[None, spec.num_frames, spec.height, spec.width, 3])
        return answer(padded, tf.sequence_mask(counts, spec.num_frames))

    shape = [None, spec.num_frames]
    frames_spec = tf.TensorSpec([*shape, spec.height, spec.width, 3], tf.uint8, "frames")
    with tempfile.TemporaryDirectory() as assets:
        module = tf.Module()
        module.weights = [variable.value for variable in model.variables]
        module.assets = []
        for name, text in _papers(card):
            (Path(assets) / name).write_text(text, encoding="utf-8")
            module.assets.append(tf.saved_model.Asset(f"{assets}/{name}"))
        module.frames = _traced(of_frames, frames_spec, tf.TensorSpec(shape, tf.bool, "mask"))
        module.jpeg = _traced(of_jpeg, tf.TensorSpec([None, None], tf.string, "jpeg"))
        signatures = {"serving_default": module.jpeg, "jpeg": module.jpeg, "frames": module.frames}
        _save(module, folder, signatures)


def _write_tflite(model: keras.Model, card: ModelCard, quantization: str, path: Path) -> None:
    spec = card.spec
    preprocess, backbone = map(model.get_layer, ("preprocess", "backbone"))
    classify = classifier(model)

    # `_apply_to_real_frames` has a shape that depends on the mask, and an operation that TFLite lacks.
    def of_one_clip(frames: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        features = (
            backbone(preprocess(frames[0]), training=False) * tf.cast(mask[0], tf.float32)[:, tf.newaxis]
        )
        logits = classify({"features": features[tf.newaxis], "mask": mask}, training=False)
        return {"probabilities": tf.nn.softmax(logits)}

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    module.classify = _traced(
        of_one_clip,
        tf.TensorSpec([1, spec.num_frames, spec.height, spec.width, 3], tf.uint8, "frames"),
        tf.TensorSpec([1, spec.num_frames], tf.bool, "mask"),
    )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        # By way of a SavedModel: the converter's own way from a function does not find Keras's variables.
        _save(module, Path(folder), {"serving_default": module.classify})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantization == "dynamic_range":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in _papers(card):
            archive.writestr(name, text)


def _save(module: tf.Module, folder: Path, signatures: dict[str, Any]) -> None:
    try:
        tf.saved_model.save(module, str(folder), signatures)
    except tf.errors.ResourceExhaustedError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _papers(card: ModelCard) -> list[tuple[str, str]]:
    """What goes with an export: names and contents."""
    return [(LABELS_NAME, "".join(f"{name}\n" for name in card.classes)), (CARD_NAME, card.to_json())]


def _traced(function: Callable[..., dict[str, tf.Tensor]], *inputs: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=inputs, autograph=False)


def _assert_real_frames_first(real: tf.Tensor) -> None:
    """Bool [B, n]; else a clip without frames would give no numbers, and one with a gap other ones."""
    tf.debugging.assert_equal(tf.reduce_all(real[:, 0]), True, "a clip does not begin with a real frame")
    orderly = tf.reduce_all(real[:, :-1] | ~real[:, 1:])
    tf.debugging.assert_equal(orderly, True, "a clip has a real frame behind padding")


def _stored_frame(file: tf.Tensor, clip: ClipConfig) -> tf.Tensor:
    """A frame of any size as the model takes it: string [] to uint8 [image_size, image_size, 3].

    What the converter and `input_pipeline` do to a video's frame, in TensorFlow.
    """
    # INTEGER_ACCURATE, as everywhere: it equals OpenCV's decoder.
    frame = tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE")
    short = tf.reduce_min(tf.shape(frame)[:2])
    if clip.resize == "crop":
        frame = _centre_square(frame, short)
    scale = clip.image_size / short
    size = tf.cast(tf.round(tf.cast(tf.shape(frame)[:2], tf.float64) * scale), tf.int32)
    resized = tf.cond(
        short >= 2 * clip.image_size,
        lambda: tf.image.resize(frame, size, "area"),
        lambda: tf.image.resize(frame, size, "bilinear"),
    )
    square = _centre_square(tf.floor(resized + 0.5), clip.image_size)
    return tf.ensure_shape(tf.saturate_cast(square, tf.uint8), [clip.image_size, clip.image_size, 3])


def _centre_square(frame: tf.Tensor, side: tf.Tensor | int) -> tf.Tensor:
    top, left = tf.unstack((tf.shape(frame)[:2] - side) // 2)
    return frame[top : top + side, left : left + side]


def _first_clips(run: OpenRun, data_dir: str, split: str) -> list[_Batch]:
    """The model's inputs for the first clips of a split."""
    dataset = input_pipeline.eval_dataset(run.folder, run.info, _BATCH_SIZE, split, run.card.num_frames)
    with verify.named_damage(run.folder, data_dir):
        return [
            {name: values.numpy()[weight.numpy() > 0] for name, values in inputs.items()}
            for inputs, _, weight in dataset.take(_CHECKED_CLIPS // _BATCH_SIZE)
        ]


def _as_jpeg(batch: _Batch) -> tuple[_Batch, _Batch]:
    """The same clips as JPEG files, and as the input pipeline decodes those."""
    jpeg, decoded = np.full(batch["mask"].shape, b"", object), np.zeros_like(batch["frames"])
    for files, images, frames, real in zip(jpeg, decoded, batch["frames"], batch["mask"], strict=True):
        files[real] = [tf.io.encode_jpeg(frame, quality=95).numpy() for frame in frames[real]]
        images[real] = records.decode_frames(tf.constant(files[real]), "jpeg", *frames.shape[1:3])
    return {"jpeg": tf.constant(jpeg)}, {"frames": decoded, "mask": batch["mask"]}


def _of_model(model: keras.Model) -> _Classify:
    return tf.function(lambda batch: tf.nn.softmax(model(batch, training=False)), autograph=False)


def _of_tflite(path: Path) -> _Classify:
    with _quiet(), warnings.catch_warnings():
        # Newer versions warn that LiteRT, a package of its own, will take over.
        warnings.simplefilter("ignore")
        runner = tf.lite.Interpreter(str(path)).get_signature_runner()

    def classify(batch: _Batch) -> np.ndarray:
        clips = zip(batch["frames"], batch["mask"], strict=True)
        with _quiet():
            rows = [runner(frames=frames[np.newaxis], mask=mask[np.newaxis]) for frames, mask in clips]
        return np.concatenate([row["probabilities"] for row in rows])

    return classify


def _probabilities(what: str, classify: _Classify, batches: Sequence[_Batch]) -> np.ndarray:
    """Probabilities [N, C] of all clips."""
    with _exact_float32(), Progress(f"Checking {what}", len(batches), "batches", False) as progress:

        def answers() -> Iterator[np.ndarray]:
            for batch in batches:
                yield np.asarray(classify(batch))
                progress.advance()

        return np.concatenate(list(answers()))


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Without TF32, by which a GPU multiplies float32 with 10 bits of its 23, in a block."""
    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)


def _compared(what: str, expected: np.ndarray, found: np.ndarray) -> Check:
    same_class = found.argmax(axis=1) == expected.argmax(axis=1)
    return Check(what, float(np.abs(found - expected).max()), int(same_class.sum()), len(expected))


def _checked(what: str, expected: np.ndarray, found: np.ndarray, bound: float) -> Check:
    check = _compared(what, expected, found)
    # Negated, so that what is no number fails.
    if not check.largest_difference <= bound:
        raise ExportError(f"The export is not the model, so it is not kept: {check}; {bound:g} is allowed.")
    return check


def _against_half_precision(model: keras.Model, clips: Sequence[_Batch], expected: np.ndarray) -> list[Check]:
    """What float32 changes in a model that was trained in half precision; nothing in another."""
    policy = model.get_layer("backbone").layers[-1].dtype_policy
    if policy.compute_dtype == "float32":
        return []
    found = _probabilities(policy.name, _of_model(model), clips)
    return [_compared(f"float32 and the run's {policy.name}", expected, found)]


def _is_saved_model(path: Path) -> bool:
    return (path / "assets" / CARD_NAME).is_file()


def _is_tflite(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    # A model.keras has the card too.
    with zipfile.ZipFile(path) as archive:
        return {LABELS_NAME, CARD_NAME} <= set(archive.namelist())


@contextmanager
def _replaced(path: str, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives a path for a new file or folder, which takes the place of `path` when the block ends well."""
    if remote.is_remote(path):
        raise ExportError(f"Models cannot be exported to {path}. Give a local path, and copy it from there.")
    old = Path(path)
    if old.exists() and not is_ours(old):
        raise ExportError(f"{path} is there, and no such export of vidpipe's. Give another, or remove it.")
    try:
        with tempfile.TemporaryDirectory(".tmp", f"{old.name}.", old.parent) as beside:
            new = Path(beside) / "new"
            yield new
            if old.exists():
                old.rename(Path(beside) / "old")
            new.rename(old)
    except OSError as error:
        raise ExportError(
            f"Cannot write {path} ({error.strerror}). Make room, or its folder writable, or give another."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops what TensorFlow's C++ side writes to stderr, where the converter speaks of its passes."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)

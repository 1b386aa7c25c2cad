"""Exports a model as a SavedModel, for TensorFlow Serving and programs without Keras and vidpipe."""

import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from vidpipe.config import ClipConfig, ExportConfig
from vidpipe.data import records
from vidpipe.data.dataset import open_dataset
from vidpipe.inference import export_check
from vidpipe.inference.export_check import Batch, Check
from vidpipe.inference.export_files import ExportError, metadata_files, replaced
from vidpipe.inference.portable_model import as_module, as_signature, portable_model, save_module
from vidpipe.model.model_file import METADATA_NAME, ModelMetadata

# Allowed difference of a probability. Typical differences are in BUILD_NOTES.md.
TOLERANCE = 1e-5
# TensorFlow matches the path of a SavedModel's variables as a pattern: with [] it finds none, and * and ?
# match other folders, too.
_PATTERN_CHARACTERS = "[]*?\\"


def export_saved_model(config: ExportConfig) -> list[Check]:
    """Writes a run's model as a SavedModel, which TensorFlow loads without Keras.

    It has two signatures. Both return `probabilities` float32 [B, C] and `labels` string [B, C], the class of
    each probability, for clients that see the answer only.

    - `jpeg`, also `serving_default`, takes `jpeg` string [B, n], n <= T: the frames of each clip as JPEG
      files, with empty strings after those of a shorter clip. Frames of any size are cropped and resized as
      the converter does, with pixel values that differ by at most 1 of 255.
    - `frames` takes `frames` uint8 [B, T, H, W, 3], RGB, and `mask` bool [B, T], True for real frames, which
      come first.

    Its folder `assets` holds `labels.txt`, one class per line, and `vidpipe.json`, the classes and the clip
    settings. It computes in float32, see `portable_model`.

    Args:
      config: `output` is a local folder; it appears there once it has passed the check, and replaces an older
        export.

    Returns:
      A check of each signature, and of float32 against a model of half precision.

    Raises:
      ExportError: the output cannot be written, something else is there, or the export does not agree with
        the model.
      EvaluateError, ModelError, ShardError: the dataset and the model do not belong together or cannot be
        read.
    """
    if set(_PATTERN_CHARACTERS) & set(str(Path(config.output).resolve())):
        raise ExportError(
            f"{config.output}: TensorFlow takes {_PATTERN_CHARACTERS} in the path of a SavedModel for a "
            "pattern, and would load nothing or another model. Choose another path."
        )
    with (
        replaced(config.output, _is_saved_model) as new,
        open_dataset(config.data_dir, config.cache_dir) as dataset,
    ):
        trained, metadata = export_check.load_model_for(config.run_dir, dataset)
        dataset.fetch(config.split)
        model = portable_model(trained)
        _write_saved_model(model, metadata, new)
        clips = export_check.first_clips(dataset, config.split, metadata.num_frames)
        expected = export_check.classify_all("model", export_check.by_model(model), clips)
        return [
            *_check_signatures(new, model, clips, expected),
            *export_check.check_half_precision(trained, clips, expected),
        ]


def _check_signatures(
    folder: Path, model: keras.Model, clips: list[Batch], expected: np.ndarray
) -> list[Check]:
    signatures = tf.saved_model.load(str(folder)).signatures

    def by_signature(name: str) -> export_check.Classify:
        return lambda batch: signatures[name](**batch)["probabilities"]

    jpegs, decoded = zip(*map(_as_jpeg, clips), strict=True)
    expected_of_jpeg = export_check.classify_all("model", export_check.by_model(model), decoded)
    return [
        export_check.check(
            name,
            expected=expected,
            found=export_check.classify_all(name, by_signature(name), batches),
            tolerance=TOLERANCE,
        )
        for name, expected, batches in (("frames", expected, clips), ("jpeg", expected_of_jpeg, jpegs))
    ]


def _write_saved_model(model: keras.Model, metadata: ModelMetadata, folder: Path) -> None:
    spec = metadata.spec
    labels = tf.constant([metadata.classes])

    def classify(frames: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = model({"frames": frames, "mask": mask}, training=False)
        return {"probabilities": tf.nn.softmax(logits), "labels": tf.tile(labels, [tf.shape(logits)[0], 1])}

    def classify_frames(frames: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        _assert_real_frames_first(mask)
        return classify(frames, mask)

    def classify_jpeg(jpeg: tf.Tensor) -> dict[str, tf.Tensor]:
        return classify(*_decode_clips(jpeg, metadata))

    mask_shape = [None, spec.num_frames]
    frames_spec = tf.TensorSpec([*mask_shape, spec.height, spec.width, 3], tf.uint8, "frames")
    with tempfile.TemporaryDirectory() as assets:
        module = as_module(model)
        module.assets = []
        for name, text in metadata_files(metadata).items():
            (Path(assets) / name).write_text(text, encoding="utf-8")
            module.assets.append(tf.saved_model.Asset(f"{assets}/{name}"))
        module.frames = as_signature(classify_frames, frames_spec, tf.TensorSpec(mask_shape, tf.bool, "mask"))
        module.jpeg = as_signature(classify_jpeg, tf.TensorSpec([None, None], tf.string, "jpeg"))
        signatures = {"serving_default": module.jpeg, "jpeg": module.jpeg, "frames": module.frames}
        save_module(module, folder, signatures)


def _decode_clips(jpeg: tf.Tensor, metadata: ModelMetadata) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes string [B, n] into frames uint8 [B, T, H, W, 3] and mask bool [B, T]."""
    spec = metadata.spec
    real = jpeg != ""
    _assert_real_frames_first(real)
    tf.debugging.assert_less_equal(tf.shape(jpeg)[1], spec.num_frames, "a clip has too many frames")
    frames = tf.map_fn(
        lambda file: _decode_frame(file, metadata.clip),
        tf.boolean_mask(jpeg, real),
        fn_output_signature=tf.TensorSpec([spec.height, spec.width, 3], tf.uint8),
    )
    counts = tf.reduce_sum(tf.cast(real, tf.int64), axis=1)
    clips = tf.RaggedTensor.from_row_lengths(frames, counts)
    padded = clips.to_tensor(shape=[None, spec.num_frames, spec.height, spec.width, 3])
    return padded, tf.sequence_mask(counts, spec.num_frames)


def _assert_real_frames_first(real: tf.Tensor) -> None:
    """Rejects bool [B, n] with a clip without frames, which would give NaN, or with a gap, a wrong result."""
    tf.debugging.assert_equal(tf.reduce_all(real[:, 0]), True, "a clip does not begin with a real frame")
    without_gaps = tf.reduce_all(real[:, :-1] | ~real[:, 1:])
    tf.debugging.assert_equal(without_gaps, True, "a clip has a real frame after padding")


def _decode_frame(file: tf.Tensor, clip: ClipConfig) -> tf.Tensor:
    """Decodes a frame of any size as the model takes it: string [] to uint8 [image_size, image_size, 3].

    Does in TensorFlow what the converter and `input_pipeline` do to a video's frame.
    """
    # INTEGER_ACCURATE, as in the input pipeline: it equals OpenCV's decoder.
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


def _as_jpeg(batch: Batch) -> tuple[Batch, Batch]:
    """Returns the same clips as JPEG files, and as the input pipeline decodes these files."""
    jpeg, decoded = np.full(batch["mask"].shape, b"", object), np.zeros_like(batch["frames"])
    for files, images, frames, real in zip(jpeg, decoded, batch["frames"], batch["mask"], strict=True):
        files[real] = [tf.io.encode_jpeg(frame, quality=95).numpy() for frame in frames[real]]
        images[real] = records.decode_frames(tf.constant(files[real]), "jpeg", *frames.shape[1:3])
    return {"jpeg": tf.constant(jpeg)}, {"frames": decoded, "mask": batch["mask"]}


def _is_saved_model(path: Path) -> bool:
    return (path / "assets" / METADATA_NAME).is_file()

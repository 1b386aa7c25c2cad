"""Exports a model as a TFLite file, for phones and small machines."""

import tempfile
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from vidpipe.config import ExportConfig
from vidpipe.data.dataset import open_dataset
from vidpipe.inference import export_check
from vidpipe.inference.export_check import Batch, Check
from vidpipe.inference.export_files import LABELS_NAME, metadata_files, quiet_stderr, replaced
from vidpipe.inference.portable_model import as_module, as_signature, portable_model, save_module
from vidpipe.model.fused import feature_encoder
from vidpipe.model.heads import classifier
from vidpipe.model.model_file import METADATA_NAME, ModelMetadata

# Allowed difference of a probability by quantization. Typical differences are in BUILD_NOTES.md.
TOLERANCES = {"none": 1e-4, "dynamic_range": 0.1}


def export_tflite(config: ExportConfig) -> list[Check]:
    """Writes a run's model as a TFLite file of built-in operations.

    It takes one clip: `frames` uint8 [1, T, H, W, 3], RGB, and `mask` bool [1, T], True for real frames,
    which come first. It returns `probabilities` float32 [1, C]. A zip archive follows the model's
    bytes, as in TFLite's metadata format: `labels.txt`, one class per line, and `vidpipe.json`.

    Args:
      config: `output` is a local file; it appears there once it has passed the check, and replaces an older
        export. `quantization` dynamic_range stores weights in 8 bits: a quarter of the size, less exact.

    Returns:
      A check of the file, and of float32 against a model of half precision.

    Raises:
      ExportError, EvaluateError, ModelError, ShardError: as `export_saved_model`.
    """
    with (
        replaced(config.output, _is_tflite) as new,
        open_dataset(config.data_dir, config.cache_dir) as dataset,
    ):
        trained, metadata = export_check.load_model_for(config.run_dir, dataset)
        dataset.fetch(config.split)
        model = portable_model(trained)
        _write_tflite(model, metadata, config.quantization, new)
        clips = export_check.first_clips(dataset, config.split, metadata.num_frames)
        expected = export_check.classify_all("model", export_check.by_model(model), clips)
        check = export_check.check(
            f"TFLite, quantization {config.quantization}",
            expected=expected,
            found=export_check.classify_all("TFLite", _by_tflite(new), clips),
            tolerance=TOLERANCES[config.quantization],
        )
        return [check, *export_check.check_half_precision(trained, clips, expected)]


def _write_tflite(model: keras.Model, metadata: ModelMetadata, quantization: str, path: Path) -> None:
    spec = metadata.spec
    encode, classify_features = feature_encoder(model).network, classifier(model)

    # In two parts: models of earlier versions gather the real frames, which TFLite cannot do.
    def classify_clip(frames: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = [frames[0], tf.concat([frames[0, :1], frames[0, :-1]], axis=0)]
        encoded = encode(inputs[: len(encode.inputs)], training=False)
        features = encoded * tf.cast(mask[0], tf.float32)[:, tf.newaxis]
        logits = classify_features({"features": features[tf.newaxis], "mask": mask}, training=False)
        return {"probabilities": tf.nn.softmax(logits)}

    module = as_module(model)
    module.classify = as_signature(
        classify_clip,
        tf.TensorSpec([1, spec.num_frames, spec.height, spec.width, 3], tf.uint8, "frames"),
        tf.TensorSpec([1, spec.num_frames], tf.bool, "mask"),
    )
    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        # Through a SavedModel: converting a function directly does not find Keras's variables.
        save_module(module, Path(folder), {"serving_default": module.classify})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if quantization == "dynamic_range":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in metadata_files(metadata).items():
            archive.writestr(name, text)


def _by_tflite(path: Path) -> export_check.Classify:
    with quiet_stderr(), warnings.catch_warnings():
        # Newer versions warn that the package LiteRT replaces this one.
        warnings.simplefilter("ignore")
        runner = tf.lite.Interpreter(str(path)).get_signature_runner()

    def classify(batch: Batch) -> np.ndarray:
        clips = zip(batch["frames"], batch["mask"], strict=True)
        with quiet_stderr():
            rows = [runner(frames=frames[np.newaxis], mask=mask[np.newaxis]) for frames, mask in clips]
        return np.concatenate([row["probabilities"] for row in rows])

    return classify


def _is_tflite(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        # Both: a model.keras holds the metadata too.
        return {LABELS_NAME, METADATA_NAME} <= set(archive.namelist())

"""Runs to export and to predict with."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from synthetic import save_colour_model
from vidpipe.config import ClipConfig, ExportConfig, ModelConfig
from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import eval_dataset
from vidpipe.model.fused import build_model
from vidpipe.model.model_file import ModelMetadata, save_model
from vidpipe.model.standardization import adapt_standardization

CLIP = ClipConfig(num_frames=4, image_size=32)

Clips = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def colour_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose model tells red from blue, the class between is green."""
    folder = tmp_path_factory.mktemp("colours") / "run"
    save_colour_model(folder, CLIP, ("blue", "green", "red"))
    return str(folder)


@pytest.fixture(scope="session")
def read_clips(dataset: Dataset) -> Callable[..., Clips]:
    """Reads all clips of a split as one batch."""

    def read(split: str = "test", num_frames: int = 4) -> Clips:
        num_clips = dataset.num_clips(split)
        ((inputs, _, _),) = eval_dataset(dataset, batch_size=num_clips, split=split, num_frames=num_frames)
        return {name: values.numpy() for name, values in inputs.items()}

    return read


@pytest.fixture(scope="session")
def save_run(read_clips: Callable[..., Clips]) -> Callable[..., keras.Model]:
    """Saves a model with random weights, whose answers differ from clip to clip."""

    def save(
        run_dir: Path,
        head: str = "motion",
        num_frames: int = 4,
        dtype_policy: str = "float32",
    ) -> keras.Model:
        keras.utils.set_random_seed(1)
        keras.config.set_dtype_policy(dtype_policy)
        try:
            config = ModelConfig(backbone_weights="none", head=head, ensemble_size=1)
            spec = CLIP.spec(num_frames)
            model = build_model(config, spec=spec, num_classes=2, stored_frames=CLIP.num_frames).fused
        finally:
            keras.config.set_dtype_policy("float32")
        adapt_standardization(model, [read_clips(num_frames=num_frames)])
        run_dir.mkdir(parents=True, exist_ok=True)
        save_model(model, ModelMetadata(("long", "short"), CLIP, num_frames), run_dir / "model.keras")
        return model

    return save


@pytest.fixture(scope="session")
def export_config(data_dir: str) -> Callable[..., ExportConfig]:
    """Makes the settings of an export that is checked on the test clips."""

    def make(run_dir: Path, output: Path | str, format: str, **changes: str) -> ExportConfig:
        settings = {"data_dir": data_dir, "split": "test"} | changes
        return ExportConfig(run_dir=str(run_dir), output=str(output), format=format, **settings)

    return make


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `model`."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def model(run_dir: Path, save_run: Callable[..., keras.Model]) -> keras.Model:
    """The model in `run_dir`."""
    return save_run(run_dir)


@pytest.fixture
def other_classes_run(tmp_path_factory: pytest.TempPathFactory, model: keras.Model) -> Path:
    """A run with `model` whose classes are not those of the dataset."""
    folder = tmp_path_factory.mktemp("other_classes")
    save_model(model, ModelMetadata(("long", "tall"), CLIP, 4), folder / "model.keras")
    return folder


@pytest.fixture(scope="session")
def probabilities_of() -> Callable[[keras.Model, Clips], np.ndarray]:
    """Runs a model: clips to probabilities [N, C]."""

    def run(model: keras.Model, clips: Clips) -> np.ndarray:
        return tf.function(lambda inputs: tf.nn.softmax(model(inputs, training=False)))(clips).numpy()

    return run

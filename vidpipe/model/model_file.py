"""model.keras: a Keras model file that also contains the class names and the clip settings.

The file is a zip archive. Keras ignores the additional entry METADATA_NAME, so plain Keras loads the file
too.
"""

import json
import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import keras
import tensorflow as tf

from vidpipe.config import ClipConfig, ClipSpec, from_dict
from vidpipe.errors import VidpipeError, first_line
from vidpipe.model.fused import FusedModel
from vidpipe.model.heads import LINEAR, SHARES
from vidpipe.model.standardization import refresh_standardization
from vidpipe.storage.files import commit

METADATA_NAME = "vidpipe.json"
_HALF_PRECISION = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16")
_log = logging.getLogger(__name__)


class ModelError(VidpipeError):
    """A model file is missing, corrupt, not written by vidpipe, or does not fit the run."""


@dataclass(frozen=True)
class ModelMetadata:
    """What a model needs besides its weights: the meaning of its outputs and inputs.

    Attributes:
      classes: ordered class names; output i is the logit of classes[i].
      clip: how a video becomes a stored clip.
      num_frames: frames that the model takes from a stored clip, evenly spread (T).
      clip_sec: duration of the training clips in seconds: a tenth is shorter, the median, a tenth is longer;
        None if it is not known.
      background: the class of clips in which nothing happens; None if there is none.
    """

    classes: tuple[str, ...]
    clip: ClipConfig
    num_frames: int
    clip_sec: tuple[float, float, float] | None = None
    background: str | None = None

    @property
    def spec(self) -> ClipSpec:
        """The shape of the clips that the model takes."""
        return self.clip.spec(self.num_frames)

    def to_json(self) -> str:
        """Formats the metadata as stored in model.keras and in exported models."""
        return json.dumps(asdict(self), indent=2)


def save_model(model: keras.Model, metadata: ModelMetadata, path: Path) -> None:
    """Writes a `.keras` file with its metadata; an old file is replaced when the new one is complete."""
    temporary = path.with_name(f"{path.stem}.tmp.keras")
    model.save(temporary)
    with zipfile.ZipFile(temporary, "a") as archive:
        archive.writestr(METADATA_NAME, metadata.to_json())
    commit(temporary, path)


def load_model(path: Path) -> tuple[keras.Model, ModelMetadata]:
    """Reads a file that `save_model` wrote.

    Raises:
      ModelError: the file is missing, corrupt, or not written by vidpipe.
    """
    with _model_errors(path):
        with zipfile.ZipFile(path) as archive:
            corrupt = archive.testzip()
            if corrupt is not None:
                raise ValueError(f"its part {corrupt} has another checksum")
            metadata = _read_metadata(archive)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        _check_shapes(model, metadata)
        return model, metadata


@contextmanager
def _model_errors(path: Path) -> Iterator[None]:
    """Raises errors of reading a model file in the block as a ModelError."""
    try:
        yield
    except FileNotFoundError:
        raise ModelError(f"There is no trained model {path}. Train one with tools/train.py.") from None
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise  # the file is not to blame
    except Exception as error:  # zipfile, zlib, h5py and Keras each have their own for a corrupt file
        raise ModelError(
            f"{path} is corrupt or was not written by vidpipe ({first_line(error)}). Start its training "
            "again, which makes it from a checkpoint, or restore the file."
        ) from error


def read_metadata(path: Path) -> ModelMetadata:
    """Reads the metadata of a model file, without its weights.

    Raises:
      ModelError: the file is missing, corrupt, or not written by vidpipe.
    """
    with _model_errors(path), zipfile.ZipFile(path) as archive:
        return _read_metadata(archive)


def precision_of(model: keras.Model) -> str:
    """Returns the dtype policy of a model's backbone, such as mixed_bfloat16."""
    name: str = model.get_layer("backbone").layers[-1].dtype_policy.name
    return name


def in_float32(model: keras.Model) -> keras.Model:
    """Builds the same layers with the same weights in float32."""
    text = model.to_json()
    for dtype in _HALF_PRECISION:
        text = text.replace(f'"{dtype}"', '"float32"')
    copy = keras.models.model_from_json(text)
    copy.set_weights(model.get_weights())
    refresh_standardization(copy)
    return copy


def for_this_machine(model: keras.Model) -> keras.Model:
    """Returns a loaded model, in float32 if it has half precision and there is no GPU: CPUs emulate that."""
    precision = precision_of(model)
    if precision not in _HALF_PRECISION or tf.config.list_physical_devices("GPU"):
        return model
    _log.info("The model was trained in %s; without a GPU it runs in float32.", precision)
    return in_float32(model)


def _read_metadata(archive: zipfile.ZipFile) -> ModelMetadata:
    """Reads the metadata of a model.

    Raises:
      KeyError, ValueError, TypeError, ConfigError: it is missing, or a value has another type or is out of
        range.
    """
    values = json.loads(archive.read(METADATA_NAME))
    classes, clip = values["classes"], from_dict(ClipConfig, values["clip"])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes is not a list of names")
    if values["num_frames"] is not None and type(values["num_frames"]) is not int:
        raise ValueError(f"num_frames is {values['num_frames']!r}")
    # Files of version 0.1 contain null for all stored frames.
    num_frames = clip.resolve_num_frames(values["num_frames"])
    clip_sec, background = values.get("clip_sec"), values.get("background")
    if clip_sec is not None:
        shortest, median, longest = (float(seconds) for seconds in clip_sec)
        clip_sec = (shortest, median, longest)
    if background is not None and background not in classes:
        raise ValueError(f"background is {background!r}")
    return ModelMetadata(tuple(classes), clip, num_frames, clip_sec, background)


def _check_shapes(model: keras.Model, metadata: ModelMetadata) -> None:
    """Raises ValueError if a model's inputs and outputs are not those of its metadata."""
    spec = metadata.spec
    shapes = {
        "frames": (model.input["frames"].shape[1:], (spec.num_frames, spec.height, spec.width, 3)),
        "classes": (model.output.shape[1:], (len(metadata.classes),)),
    }
    for name, (found, described) in shapes.items():
        if tuple(found) != described:
            raise ValueError(f"its {name} have the shape {tuple(found)}, its metadata say {described}")


def load_weights(model: FusedModel, path: Path, classes: tuple[str, ...]) -> None:
    """Copies all weights of another run's model, including the head's standardization.

    Features of the frozen blocks that were computed before are invalid afterwards.

    Args:
      model: as built by `build_model`.
      path: a file that `save_model` wrote.
      classes: of the dataset, in order.

    Raises:
      ModelError: see `load_model`; or that model has other classes, another backbone, another head or other
        shapes. `model` is unchanged then.
    """
    source, metadata = load_model(path)
    if metadata.classes != classes:
        raise ModelError(
            f"{path} was trained on the classes {', '.join(metadata.classes)}; this dataset has "
            f"{', '.join(classes)}."
        )
    if LINEAR not in [layer.name for layer in source.layers]:
        raise ModelError(
            f"{path} was trained with an earlier version of vidpipe, whose head has no linear part. Train "
            "that run again."
        )
    layers = {
        name: (source.get_layer(name), model.fused.get_layer(name))
        for name in ("backbone", "head", "logits", LINEAR, SHARES)
    }
    for name, both in layers.items():
        found, expected = ([_describe(weight) for weight in layer.weights] for layer in both)
        for theirs, ours in zip_longest(found, expected, fillvalue="nothing"):
            if theirs != ours:
                raise ModelError(
                    f"{path} has another {name}: found {theirs}, expected {ours}. Use the model flags of "
                    "that run (--backbone, --pixel_differences, --head, --ensemble_size)."
                )
    for source_layer, layer in layers.values():
        layer.set_weights(source_layer.get_weights())
    refresh_standardization(model.fused)


def _describe(weight: keras.Variable) -> str:
    """Returns the layer, name and shape of a weight, such as "lstm_cell/kernel (1024, 256)".

    Keras numbers unnamed layers per process, and a loaded Sequential omits its own name; both are left out.
    """
    path = re.sub(r"_\d+(?=/|$)", "", "/".join(weight.path.split("/")[-2:]))
    return f"{path} {tuple(weight.shape)}"

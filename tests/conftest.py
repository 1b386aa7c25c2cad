"""Shared data, made once: TensorFlow takes seconds to load and VGG16 to build."""

import logging
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from synthetic import position_frames, write_class_folders
from vidpipe.config import (
    ClipConfig,
    ConversionConfig,
    ManifestConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from vidpipe.data import convert, shards, video
from vidpipe.data.dataset import Dataset

if TYPE_CHECKING:
    import keras
    from selenium import webdriver

CLIP = ClipConfig(num_frames=4, image_size=32)
_CHROMIUM_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1200,900",
)  # fmt: skip


# Tests with one of these markers are slow: they start processes, a browser or servers, or build all of VGG16.
SLOW_KINDS = ("processes", "browser", "object_store", "devices", "benchmark", "full_backbone")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests of a slow kind as slow; `tools/test.sh` leaves those out, `tools/test.sh all` runs them."""
    for item in items:
        if any(item.get_closest_marker(kind) for kind in SLOW_KINDS):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Removes the log handler of a command that a test ran: it writes to that test's captured stderr."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


def shallow_vgg16(
    weights: str | None, include_top: bool, input_shape: tuple[int, int, int], pooling: str
) -> "keras.Model":
    """Builds VGG16 with one convolution per block: the same widths and names, a third of the operations."""
    import keras
    from keras import layers

    assert weights is None, "the shallow VGG16 has no pretrained weights: mark the test full_backbone"
    assert not include_top
    assert pooling == "avg"
    image = features = keras.Input(input_shape)
    for block, filters in enumerate((64, 128, 256, 512, 512), start=1):
        convolution = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"block{block}_conv1")
        features = layers.MaxPooling2D(name=f"block{block}_pool")(convolution(features))
    return keras.Model(image, layers.GlobalAveragePooling2D()(features), name="vgg16")


@pytest.fixture(autouse=True, scope="module")
def shallow_backbone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Replaces VGG16 by `shallow_vgg16`, but in modules that are marked full_backbone.

    Tracing takes most of the tests' time, and follows the number of operations.
    """
    if request.node.get_closest_marker("full_backbone"):
        yield
        return
    from vidpipe.model.backbone import BACKBONES

    full = BACKBONES["vgg16"]
    BACKBONES["vgg16"] = replace(full, application=shallow_vgg16)
    yield
    BACKBONES["vgg16"] = full


@pytest.fixture(scope="session")
def video_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with two classes; lengths from 1 to 16 frames, so some are shorter than T = 4."""
    folder = tmp_path_factory.mktemp("videos")
    write_class_folders(folder / "train", {"long": [16, 12, 8, 10, 14], "short": [1, 2, 3, 4, 5]})
    write_class_folders(folder / "test", {"long": [16, 9, 11], "short": [2, 3, 4]})
    return folder


@pytest.fixture(scope="session")
def conversion(video_dir: Path) -> Callable[..., ConversionConfig]:
    """Makes a conversion of `video_dir`: small PNG frames, two workers, val from two folds."""

    def make(output_dir: Path, **changes: object) -> ConversionConfig:
        manifest = ManifestConfig(video_dir=str(video_dir), val_fraction=0.2)
        settings: dict = {"clip": CLIP, "encoding": "png", "num_workers": 2, "shard_size_mb": 0.03}
        return ConversionConfig(output_dir=str(output_dir), manifest=manifest, **(settings | changes))

    return make


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory, conversion: Callable[..., ConversionConfig]) -> str:
    """A committed dataset: 8 train, 2 val, 6 test clips in several shards each."""
    folder = tmp_path_factory.mktemp("data") / "records"
    convert.convert(conversion(folder))
    return str(folder)


@pytest.fixture(scope="session")
def wide_and_tall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with two videos each of 48 x 64 and 64 x 48, in whose frames every place differs."""
    folder = tmp_path_factory.mktemp("wide_and_tall")
    for name, height, width in (("wide", 48, 64), ("tall", 64, 48)):
        for path in (f"{split}/{name}/{count}.avi" for split in ("train", "test") for count in (3, 6)):
            frames = position_frames(int(Path(path).stem), height, width)
            video.write_video(str(folder / path), frames, fourcc="MJPG")
    return folder


@pytest.fixture(scope="session")
def convert_wide_and_tall(wide_and_tall: Path) -> Callable[..., ClipConfig]:
    """Converts `wide_and_tall` into a folder; 4 train and 4 test clips."""

    def make(output_dir: Path, encoding: str, resize: str) -> ClipConfig:
        clip = ClipConfig(num_frames=4, image_size=32, resize=resize)
        manifest = ManifestConfig(video_dir=str(wide_and_tall), val_fraction=0)
        convert.convert(
            ConversionConfig(
                output_dir=str(output_dir), manifest=manifest, clip=clip, encoding=encoding, num_workers=1
            )
        )
        return clip

    return make


@pytest.fixture(scope="session")
def dataset(data_dir: str) -> Dataset:
    """`data_dir`, open."""
    return Dataset(data_dir, data_dir, shards.read_info(data_dir))


@pytest.fixture(scope="session")
def info(dataset: Dataset) -> shards.DatasetInfo:
    return dataset.info


@pytest.fixture(scope="session")
def train_config(data_dir: str) -> Callable[..., TrainConfig]:
    """Makes a quick run on `data_dir`: random weights, 2 ensemble members, 3 epochs of 3 steps, no EMA."""

    def make(run_dir: Path, fine_tune: str = "none", head: str = "motion", **changes: object) -> TrainConfig:
        model = ModelConfig(backbone_weights="none", fine_tune=fine_tune, head=head, ensemble_size=2)
        settings: dict = {
            "epochs": 3, "batch_size": 3, "model": model, "label_smoothing": 0.0,
            "optimizer": OptimizerConfig(ema=0.0),
        }  # fmt: skip
        return TrainConfig(data_dir=data_dir, run_dir=str(run_dir), **(settings | changes))

    return make


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes of all files and folders that were flushed to the disk."""
    inodes: set[int] = set()
    original = os.fsync

    def fsync(descriptor: int) -> None:
        inodes.add(os.fstat(descriptor).st_ino)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return inodes


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[webdriver.Chrome]":
    """A headless browser, started once; use `browser`."""
    programs = []
    for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
        found = shutil.which(program)
        if found is None:
            pytest.skip(f"There is no {program}; Debian's package {package} has it")
        programs.append(found)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*_CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: "webdriver.Chrome") -> "webdriver.Chrome":
    """The browser with an empty page, a window of 1200 x 900 in light colours, and empty logs.

    `get_log("browser")` has what a page writes to the console, `get_log("performance")` its requests.
    """
    chromium.get("about:blank")
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    light = [
        {"name": "prefers-color-scheme", "value": "light"},
        {"name": "prefers-reduced-motion", "value": "no-preference"},
    ]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": light})
    for log in ("browser", "performance"):
        chromium.get_log(log)
    return chromium

"""The memory of the input pipeline does not grow with the number of epochs."""

import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from vidpipe.config import ClipConfig, ConversionConfig
from vidpipe.data import convert, input_pipeline
from vidpipe.data.dataset import open_dataset

WARM_UP_EPOCHS, EPOCHS = 8, 24
LIMIT_MIB = 4


@pytest.mark.processes
def test_memory_does_not_grow_with_the_epochs(
    tmp_path: Path, conversion: Callable[..., ConversionConfig]
) -> None:
    """After the warm-up 12 MiB are decoded and 16 graphs are built; less than a third may stay in memory."""
    convert.convert(conversion(tmp_path, clip=ClipConfig(num_frames=8, image_size=64), encoding="jpeg"))
    # In a separate process: memory of other tests that is freed in between would hide growth.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        mib = executor.submit(_mib_after_each_epoch, str(tmp_path)).result()
    assert mib[-1] - mib[WARM_UP_EPOCHS - 1] < LIMIT_MIB, mib


def _mib_after_each_epoch(data_dir: str) -> list[float]:
    mib = []
    with open_dataset(data_dir) as dataset:
        for epoch in range(EPOCHS):
            for _ in input_pipeline.train_dataset(dataset, batch_size=2, seed=1, epoch=epoch, num_frames=8):
                pass
            gc.collect()  # an epoch's graph is a reference cycle of 0.4 MiB, which is not freed at once
            mib.append(_resident_mib())
    return mib


def _resident_mib() -> float:
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) / 1024

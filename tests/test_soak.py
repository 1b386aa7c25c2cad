"""Reading epoch after epoch does not take more and more memory."""

import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from vidpipe import convert, input_pipeline, shards
from vidpipe.config import ClipConfig, ConversionConfig

WARM_UP_EPOCHS, EPOCHS = 8, 24
LIMIT_MIB = 4


def test_memory_does_not_grow_with_the_epochs(
    tmp_path: Path, conversion: Callable[..., ConversionConfig]
) -> None:
    """Of the 12 MiB decoded after the warm-up, and of 16 epochs' graphs, not a third may stay."""
    convert.convert(conversion(tmp_path, clip=ClipConfig(num_frames=8, image_size=64), encoding="jpeg"))
    # A process of its own: what other tests left behind, and is freed in between, would hide growth.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        mib = executor.submit(_mib_after_each_epoch, str(tmp_path)).result()
    assert mib[-1] - mib[WARM_UP_EPOCHS - 1] < LIMIT_MIB, mib


def _mib_after_each_epoch(data_dir: str) -> list[float]:
    info = shards.read_info(data_dir)
    mib = []
    for epoch in range(EPOCHS):
        for _ in input_pipeline.train_dataset(data_dir, info, batch_size=2, seed=1, epoch=epoch):
            pass
        gc.collect()  # an epoch's graph is a cycle: without this, some 0.4 MiB stay until Python collects
        mib.append(_resident_mib())
    return mib


def _resident_mib() -> float:
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) / 1024

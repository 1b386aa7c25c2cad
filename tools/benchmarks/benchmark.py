"""Measures the speed and memory of vidpipe against references that do the same work.

    python tools/benchmarks/benchmark.py decode --video_dir=/data/some_of_UCF-101 --json=decode.json
    python tools/benchmarks/benchmark.py all --json=ledger.json
    python tools/benchmarks/benchmark.py all --quick

NAME is one of
  decode    reading videos, against OpenCV's bare calls, PyAV, decord and the notebook's loader
  convert   whole conversions: two workers against one, time per clip, start-up, memory
  input     training batches, against bare JPEG decoding, one core and PyTorch's DataLoader
  model     training steps on random frames, against TimeDistributed, bare convolutions and a matrix product
  train     the complete job of the Keras notebook, from video files to trained weights
  all       each of them in turn

Each row has a ratio, vidpipe divided by the reference: below 1, vidpipe is faster or smaller. It is the
median over the rounds, with its range. The docstring of measure_NAME.py describes the rows of a benchmark,
and RESULTS.md has the tables of past measurements. Without --video_dir, `all` and --quick measure generated
videos of UCF101's size and length: 96 of them, and 8 for train.
"""

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2

import measure_convert
import measure_decode
import measure_input
import measure_model
import measure_train
from measurement import Row, Workload, in_fresh_process
from video_folders import generate_videos
from vidpipe import command_line
from vidpipe.config import ClipConfig, ManifestConfig, check, setting
from vidpipe.data.manifest import read_manifest

BENCHMARKS: dict[str, Callable[[Workload], Iterator[Row]]] = {
    "decode": measure_decode.measure,
    "convert": measure_convert.measure,
    "input": measure_input.measure,
    "model": measure_model.measure,
    "train": measure_train.measure,
}
_MAIN = "Input and output"
_COMMAND = command_line.Command(__doc__, arguments="NAME")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """How much is measured."""

    video_dir: str | None = setting(None, help="Videos in class folders.", group=_MAIN)
    json: str | None = setting(
        None, help="Write the rows, the machine and the versions to this file too.", group=_MAIN
    )
    quick: bool = setting(
        False,
        help="One round over few, small frames: shows in minutes whether everything works. The numbers are "
        "not comparable.",
    )
    repeats: int = setting(5, help="Rounds; each gives one ratio.", at_least=1)
    num_frames: int = setting(ClipConfig.num_frames, help="model and train: frames per clip (T).", at_least=1)
    image_size: int = setting(
        ClipConfig.image_size, help="model and train: side of the frames, in pixels.", at_least=32
    )
    batch_size: int = setting(2, help="model: clips per training step.", at_least=1)

    def __post_init__(self) -> None:
        check(self)

    def num_generated(self, name: str) -> int:
        """Returns how many videos are generated for a benchmark."""
        if self.quick:
            return 4 if name == "train" else 12
        return 8 if name == "train" else 96


_QUICK = BenchmarkConfig(quick=True, repeats=1, num_frames=8, image_size=64, batch_size=1)
_read_config = _COMMAND.settings(BenchmarkConfig)


def main(arguments: list[str]) -> None:
    """Flags -> measurements; prints each row as it is measured."""
    if len(arguments) != 1 or arguments[0] not in (*BENCHMARKS, "all"):
        _COMMAND.usage_error(f"name one benchmark: {', '.join(BENCHMARKS)} or all")
    (name,) = arguments
    config = _read_config()
    if config.quick:
        config = _read_config(_QUICK)
    if config.video_dir is None and name not in ("model", "all") and not config.quick:
        _COMMAND.usage_error(f"{name} needs --video_dir, or --quick to measure generated videos")
    measured_on = machine()
    print_machine(measured_on)
    names = list(BENCHMARKS) if name == "all" else [name]
    rows = measure_and_print(names, config, on_gpu=bool(measured_on["gpus"]))
    if config.json is not None:
        text = json.dumps({"machine": measured_on, "rows": rows}, indent=2) + "\n"
        Path(config.json).write_text(text, encoding="utf-8")


def measure_and_print(names: Sequence[str], config: BenchmarkConfig, *, on_gpu: bool) -> list[dict[str, Any]]:
    """Runs benchmarks; returns their rows as they are written to JSON."""
    clip = ClipConfig(num_frames=config.num_frames, image_size=config.image_size)
    workload = Workload(repeats=config.repeats, clip=clip, batch_size=config.batch_size, on_gpu=on_gpu)
    if config.quick:
        workload = replace(workload, video_seconds=(2, 20))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name == "model":
                source = f"batches of {config.batch_size}"
            else:
                video_dir = config.video_dir or generate_videos(Path(folder), config.num_generated(name))
                videos = read_manifest(ManifestConfig(video_dir=video_dir, val_fraction=0))
                workload = replace(workload, video_dir=video_dir, videos=tuple(videos))
                source = f"{len(videos)} {'videos' if config.video_dir else 'generated videos'}"
            shape = clip if name in ("model", "train") else ClipConfig()
            print_header(f"{name}: {source}, {shape.num_frames} frames of {shape.image_size} px")
            for row in BENCHMARKS[name](workload):
                print_row(row)
                rows.append({"benchmark": name} | asdict(row))
    return rows


def machine() -> dict[str, Any]:
    """Describes the machine and the versions that the measurements are made with."""
    versions = {name: metadata.version(name.lower()) for name in ("TensorFlow", "Keras", "NumPy")}
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": in_fresh_process(gpu_names),
        "versions": {"Python": platform.python_version(), "OpenCV": cv2.__version__} | versions,
    }


def gpu_names() -> list[str]:
    """Lists the GPUs that TensorFlow sees."""
    command_line.load_tensorflow()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]


def _processor() -> str:
    """Returns the name of the CPU's model."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else "unknown processor"


def print_machine(measured_on: dict[str, Any]) -> None:
    """Prints the machine and the versions, and how to read the tables."""
    gpus = ", ".join(measured_on["gpus"]) or "no GPU"
    print(
        f"{measured_on['processor']}, {measured_on['cores']} cores, {measured_on['memory_gib']} GiB, {gpus}"
    )
    print(", ".join(f"{package} {version}" for package, version in measured_on["versions"].items()))
    print("ratio = vidpipe / reference: below 1 vidpipe is faster or smaller", flush=True)


def print_header(title: str) -> None:
    """Prints what a benchmark works on, and the heads of its columns."""
    print(f"\n{title}")
    columns = f"{'':30}  {'vidpipe':>8}  {'per sec':>7}  {'reference':>9}  {'ratio (min to max)':>20}"
    print(f"{columns}  unit, reference", flush=True)


def print_row(row: Row) -> None:
    """Prints a row of the table."""
    middle, low, high = (_short(ratio) for ratio in (row.ratio, row.ratio_min, row.ratio_max))
    ratio = f"{middle} ({low} to {high})"
    rate = f"{row.per_sec:.2f}" if row.per_sec is not None else ""
    print(
        f"{row.what:30}  {row.vidpipe:8.2f}  {rate:>7}  {row.reference_value:9.2f}  {ratio:>20}  "
        f"{row.unit}, {row.reference}",
        flush=True,
    )


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))

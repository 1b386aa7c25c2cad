"""Measures vidpipe against floors and peers on the same work, in one run, as ratios.

    python tools/benchmark.py decode --video_dir=/data/some_of_UCF-101 --json=decode.json
    python tools/benchmark.py convert --video_dir=/data/some_of_UCF-101
    python tools/benchmark.py input --video_dir=/data/some_of_UCF-101
    python tools/benchmark.py model --clips=1
    python tools/benchmark.py train --video_dir=/data/eight_of_UCF-101
    python tools/benchmark.py all --json=ledger.json [--quick]

all: each of them in turn, on made-up videos where no --video_dir is given: of the size of UCF101's, 96 of
them, and 8 for train. --quick takes small frames, few of them, and one round: three minutes, to see
whether all is well rather than to compare.
decode: CPU time per clip. Reading and encoding, against the floor: the bare grabbing of the frames up to the
last wanted one plus the bare encoding of the kept ones. Reading alone, against PyAV and decord (which
`pip install '.[benchmark]'` brings), told which frames and held to one thread; and against the notebook's
loader, which decodes, crops and resizes every frame and keeps the first T.
convert: whole conversions, each in a fresh process. Wall time with two workers, against one. CPU time per
clip of all processes, start-up apart, against the same floor; and that start-up (Python, TensorFlow, two
workers), against all the clips. Peak memory of the parent and of the largest worker for ten times the videos
(links to the same files), against that for the videos once: it should not grow.
input: epochs of training batches, each in a fresh process, from records that are made first in a temporary
folder (4 MB a clip). An epoch has every clip ten times, so that its start weighs little. CPU time per frame
on one core, all threads, against the floor: bare decode_jpeg of the same bytes on that core. Wall time per
clip on two cores, against one; against PyTorch's DataLoader with two workers on the same two cores, which
decodes the source videos with PyAV, told which frames; and of raw frames, against JPEG.
model: training steps on random frames, weights and labels; it needs no data. The first step, in a fresh
process for each side, with TensorFlow loaded, in the precision that a run would choose: building the model,
tracing the step, and taking it; against the same model in which keras.layers.TimeDistributed applies VGG16.
Later steps, in turn in one process: with a frozen backbone (and no stored features), with fine_tune=block5,
and with all of it trained; on a GPU in each precision. Against the floor, the bare convolutions of the same
frames: that is VGG16's forward pass alone, and the backward pass through what is trained; no preprocessing,
head, loss or optimizer. The goal is at most 1.10. Against the device's peak: a product of two large matrices
in the same precision, for as many operations as those convolutions have; 2.00 is half the peak. Frozen,
against the same peer as the first step; on a GPU, against the same step compiled by XLA. The head's step on
stored features, against one whose LSTM is kept off cuDNN's kernel. And the memory of the first step's
tensors, against the estimate by which a run chooses its batch. Wall time, and without a GPU CPU time too:
other jobs on the machine do not count there, nor does a core that stands idle.
train: the notebook's whole job, from video files to trained weights, in a fresh process for each side. It
loads every frame of a video, keeps the first T, computes the features of each by a predict() of its own, and
fits its head for ten epochs. Ours converts the videos (with sampling=head: the same frames), computes the
features, and trains --head=notebook for ten epochs. Wall time per clip, part by part and whole, without the
import of TensorFlow; building VGG16 counts to the features. Neither has a validation split: after an epoch
ours writes its model and a checkpoint, the notebook weights that are better. And of ours, the first epoch and
the computing of the features, against later epochs, which read these: with all that is written after an
epoch, and the steps alone. The goal is fifty times. Last, of a frozen run that stores no features and reads
JPEG in every epoch, the time in which steps wait for data, against all.

A hundred videos are enough: a round of decode reads each of them 21 times, a round of convert 23 times, a
round of input 40 times, ten of them as a video. With far fewer, the time of a converted clip drowns in the
noise of the start-up, and that of a frame read in the start of the epoch. For train eight do where there is
no GPU: a round passes their frames through VGG16 twice. A round of model passes its clips some 20 times.
"""

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
from absl import flags

import cli
import measure_input
import measure_training
from vidpipe.config import ClipConfig, ManifestConfig
from vidpipe.manifest import read_manifest

_VIDEO_DIR = flags.DEFINE_string("video_dir", None, "Videos in class folders; model and all need none.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds over the work; each gives one ratio.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "With all: one round over little.")
_JSON = flags.DEFINE_string("json", None, "Write the table here too.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", ClipConfig.image_size, "Of model and train: side of the frames, pixels.", lower_bound=32
)
_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", ClipConfig.num_frames, "Of model and train: frames per clip (T).", lower_bound=1
)
_CLIPS = flags.DEFINE_integer("clips", 2, "Of model: clips per batch.", lower_bound=1)


NAMES = ("decode", "convert", "input", "model", "train")


@dataclass(frozen=True)
class Load:
    """How much is measured.

    Attributes:
      repeats: rounds.
      num_frames, image_size: of the clips of model and train.
      clips: of a batch of model.
      num_videos: made up for all; and for train.
      on_gpu: whether there is one, for whose three precisions the steps are measured.
    """

    repeats: int
    num_frames: int
    image_size: int
    clips: int
    num_videos: tuple[int, int] = (96, 8)
    on_gpu: bool = False


def measure(name: str, video_dir: str | None, load: Load) -> Iterator[dict[str, Any]]:
    """The rows of a benchmark, after a line that says on what they are measured."""
    frames = f"{load.num_frames} frames, {load.image_size} px"
    if name == "model":
        print_head(f"model: batches of {load.clips} clips of {frames}")
        clip = ClipConfig(load.num_frames, image_size=load.image_size)
        return measure_training.benchmark_model(load.clips, clip, load.repeats, load.on_gpu)
    assert video_dir is not None
    videos = read_manifest(ManifestConfig(video_dir, val_fraction=0))
    if name == "train":
        print_head(f"train: {len(videos)} videos, {frames}")
        clip = ClipConfig(load.num_frames, sampling="head", image_size=load.image_size)
        return measure_training.benchmark_train(video_dir, videos, clip, load.repeats, load.on_gpu)
    paths = [str(Path(video_dir) / video.path) for video in videos]
    peers = measure_input.installed_peers() if name == "decode" else {}
    loader = measure_input.installed_loader() if name == "input" else None
    print_head(f"{name}: {len(videos)} videos")
    if name == "decode":
        return measure_input.benchmark_decode(paths, peers, load.repeats)
    if name == "input":
        return measure_input.benchmark_input(video_dir, paths, loader, load.repeats)
    return measure_input.benchmark_convert(video_dir, paths, load.repeats)


def machine() -> dict[str, Any]:
    """What the measurements are made on, and with which versions."""
    versions = {name: metadata.version(name.lower()) for name in ("TensorFlow", "Keras", "NumPy")}
    return {
        "processor": measure_input.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": measure_input.in_fresh_process(measure_training.gpu_names),
        "versions": {"Python": platform.python_version(), "OpenCV": cv2.__version__} | versions,
    }


def measure_and_print(
    names: Sequence[str], video_dir: str | None, load: Load, made_in: Path | None
) -> list[dict[str, Any]]:
    """The rows of some benchmarks. Without a video_dir, videos are made up in the folder `made_in`."""
    rows = []
    for name in names:
        videos = video_dir
        if videos is None and made_in is not None and name != "model":
            videos = measure_input.make_videos(made_in, load.num_videos[name == "train"])
        print()
        for row in measure(name, videos, load):
            print_row(row)
            rows.append({"benchmark": name} | row)
    return rows


def print_head(what: str) -> None:
    """What is measured on, and the heads of the columns."""
    print(what)
    print(
        f"{'':30}  {'ours':>8}  {'a second':>8}  {'theirs':>8}  {'ratio (min to max)':>22}  against",
        flush=True,
    )


def print_row(row: dict[str, Any]) -> None:
    """As it is made."""
    ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
    rate = f"{row['per_sec']:.2f}" if row["per_sec"] is not None else ""
    print(
        f"{row['what']:30}  {row['ours']:8.2f}  {rate:>8}  {row['theirs']:8.2f}  {ratio:>22}  "
        f"{row['against']}, {row['unit']}",
        flush=True,
    )


def main(arguments: list[str]) -> None:
    """Prints a row per measurement, as it is made."""
    if len(arguments) != 1 or arguments[0] not in (*NAMES, "all"):
        cli.usage_error(f"name one benchmark: {', '.join(NAMES)} or all")
    name = arguments[0]
    if _QUICK.value and name != "all":
        cli.usage_error("--quick goes with all")
    if _VIDEO_DIR.value is None and name not in ("model", "all"):
        cli.usage_error(f"{name} needs --video_dir")
    on = machine()
    load = Load(_REPEATS.value, _NUM_FRAMES.value, _IMAGE_SIZE.value, _CLIPS.value)
    if _QUICK.value:
        load = Load(repeats=1, num_frames=8, image_size=64, clips=1, num_videos=(12, 4))
    load = replace(load, on_gpu=bool(on["gpus"]))
    gpus = ", ".join(on["gpus"]) or "no GPU"
    versions = ", ".join(f"{package} {version}" for package, version in on["versions"].items())
    print(f"{on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB, {gpus}\n{versions}")
    with tempfile.TemporaryDirectory() as folder:
        names, made_in = (NAMES, Path(folder)) if name == "all" else ((name,), None)
        rows = measure_and_print(names, _VIDEO_DIR.value, load, made_in)
    if _JSON.value is not None:
        text = json.dumps({"machine": on, "rows": rows}, indent=2) + "\n"
        Path(_JSON.value).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)

"""Measures vidpipe against floors and peers on the same work, in one run, as ratios.

    python tools/benchmark.py decode --video_dir=/data/some_of_UCF-101 --json=decode.json
    python tools/benchmark.py convert --video_dir=/data/some_of_UCF-101
    python tools/benchmark.py input --video_dir=/data/some_of_UCF-101
    python tools/benchmark.py model --clips=1
    python tools/benchmark.py train --video_dir=/data/eight_of_UCF-101

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
model: training steps on random frames, weights and labels, in the precision that a run would choose; it needs
no data. The first step, in a fresh process for each side, with TensorFlow loaded: building the model, tracing
the step, and taking it; against the same model in which keras.layers.TimeDistributed applies VGG16. Later
steps, in turn in one process: with a frozen backbone (and no stored features), against the same peer; and
with a frozen backbone, with fine_tune=block5, and with all of it trained, against the floor: the bare
convolutions of the same frames. That is VGG16's forward pass alone, and the backward pass through what is
trained; no preprocessing, head, loss or optimizer. The goal is at most 1.10. Wall time, and without a GPU
CPU time too: other jobs on the machine do not count there, nor does a core that stands idle.
train: the notebook's whole job, from video files to trained weights, in a fresh process for each side. It
loads every frame of a video, keeps the first T, computes the features of each by a predict() of its own, and
fits its head for ten epochs. Ours converts the videos (with sampling=head: the same frames), computes the
features, and trains --head=notebook for ten epochs. Wall time per clip, part by part and whole, without the
import of TensorFlow; building VGG16 counts to the features. Neither has a validation split: after an epoch
ours writes its model and a checkpoint, the notebook weights that are better. And of ours, the first epoch and
the computing of the features, against later epochs, which read these: with all that is written after an
epoch, and the steps alone. The goal is fifty times.

A hundred videos are enough: a round of decode reads each of them 21 times, a round of convert 23 times, a
round of input 40 times, ten of them as a video. With far fewer, the time of a converted clip drowns in the
noise of the start-up, and that of a frame read in the start of the epoch. For train eight do where there is
no GPU: a round passes their frames through VGG16 twice. A round of model passes its clips some 20 times.
"""

import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
from absl import flags

import cli
import measure_input
import measure_training
from vidpipe.config import ClipConfig, ManifestConfig
from vidpipe.manifest import VideoRow, read_manifest

_VIDEO_DIR = flags.DEFINE_string("video_dir", None, "Videos in class folders; model needs none.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds over the work; each gives one ratio.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Write the table here too.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", ClipConfig.image_size, "Of model and train: side of the frames, pixels.", lower_bound=32
)
_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", ClipConfig.num_frames, "Of model and train: frames per clip (T).", lower_bound=1
)
_CLIPS = flags.DEFINE_integer("clips", 2, "Of model: clips per batch.", lower_bound=1)


def measure(name: str, video_dir: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a benchmark, after a line that says on what they were measured."""
    repeats, (num_frames, image_size) = _REPEATS.value, (_NUM_FRAMES.value, _IMAGE_SIZE.value)
    if name == "model":
        _print_head(f"{_CLIPS.value} clips of {num_frames} frames, {image_size} px", "TensorFlow", "Keras")
        clip = ClipConfig(num_frames, image_size=image_size)
        return measure_training.benchmark_model(_CLIPS.value, clip, repeats)
    if video_dir is None:
        cli.usage_error(f"{name} needs --video_dir")
    videos = read_manifest(ManifestConfig(video_dir, val_fraction=0))
    if name == "train":
        what = f"{len(videos)} videos, {num_frames} frames of each, {image_size} px"
        _print_head(what, "TensorFlow", "Keras")
        clip = ClipConfig(num_frames, sampling="head", image_size=image_size)
        return measure_training.benchmark_train(video_dir, videos, clip, repeats)
    _print_head(f"{len(videos)} videos")
    return _measure_input(name, video_dir, videos)


def _measure_input(name: str, video_dir: str, videos: list[VideoRow]) -> Iterator[dict[str, Any]]:
    repeats, paths = _REPEATS.value, [str(Path(video_dir) / video.path) for video in videos]
    if name == "decode":
        return measure_input.benchmark_decode(paths, measure_input.installed_peers(), repeats)
    if name == "input":
        loader = measure_input.installed_loader()
        return measure_input.benchmark_input(video_dir, paths, loader, repeats)
    return measure_input.benchmark_convert(video_dir, paths, repeats)


def _print_head(what: str, *packages: str) -> None:
    versions = [f"{name} {metadata.version(name.lower())}" for name in packages]
    print(", ".join([what, f"Python {platform.python_version()}", f"OpenCV {cv2.__version__}", *versions]))


def main(arguments: list[str]) -> None:
    """Prints a row per measurement, as it is made."""
    names = ("decode", "convert", "input", "model", "train")
    if len(arguments) != 1 or arguments[0] not in names:
        cli.usage_error(f"name one benchmark: {', '.join(names[:-1])} or {names[-1]}")
    measured = measure(arguments[0], _VIDEO_DIR.value)
    print(f"{'':30}  {'ours':>8}  {'theirs':>8}  {'ratio (min to max)':>22}  against", flush=True)
    rows = []
    for row in measured:
        rows.append(row)
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        print(
            f"{row['what']:30}  {row['ours']:8.2f}  {row['theirs']:8.2f}  {ratio:>22}  "
            f"{row['against']}, {row['unit']}",
            flush=True,
        )
    if _JSON.value is not None:
        Path(_JSON.value).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)

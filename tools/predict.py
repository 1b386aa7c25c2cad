"""Classifies video files with a trained run.

    python tools/predict.py --run_dir=/runs/1 holiday.mp4 /data/new 'cameras/**/street*'

Videos are files, folders with videos below them, or patterns in quotes. With --timeline=DIR each is walked in
windows of --window_sec, one every --hop_sec, and DIR gets a table and a picture of it: what is seen when.

--json prints an object per line: {"video", "predicted", "probabilities"}, in a timeline one per window with
"start_sec" and "end_sec" too, and {"video", "error"} for what could not be read.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

import cli
from vidpipe import sampling
from vidpipe.config import ConversionConfig
from vidpipe.progress import Progress

if TYPE_CHECKING:
    from vidpipe import predict

_Result = TypeVar("_Result")

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A run of tools/train.py.", required=True)
_JSON = flags.DEFINE_bool("json", False, "JSON lines, for programs.")
_GIF = flags.DEFINE_string("gif", None, "This folder gets each clip as the model saw it, animated.")
_TIMELINE = flags.DEFINE_string("timeline", None, "This folder gets a table and a picture of each video.")
_WINDOW_SEC = flags.DEFINE_float("window_sec", 2, "With --timeline: length of a window.", lower_bound=0.01)
_HOP_SEC = flags.DEFINE_float("hop_sec", 1, "With --timeline: from window to window.", lower_bound=0.01)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Clips per step, as in evaluate.py.",
    lower_bound=1,
)  # fmt: skip
_TIMEOUT_SEC = flags.DEFINE_float(
    "timeout_sec",
    ConversionConfig.timeout_sec,
    "A video, of a timeline a window, that takes longer to decode is given up.",
    lower_bound=0.01,
)


def main(arguments: list[str]) -> int:
    """Videos -> ranked class probabilities, or timelines; 1 if any video could not be read."""
    if not arguments:
        cli.usage_error("name at least one video")
    if _TIMELINE.value is None and (flags.FLAGS["window_sec"].present or flags.FLAGS["hop_sec"].present):
        cli.usage_error("--window_sec and --hop_sec need --timeline=DIR, where the timelines go")
    if _TIMELINE.value is not None and _GIF.value is not None:
        cli.usage_error("--gif shows whole clips, --timeline windows: give one of them")
    cli.load_tensorflow()
    from vidpipe import predict

    videos, missed = predict.find_videos(arguments)
    for argument, reason in missed.items():
        _tell(argument, reason)
    failures = len(missed)
    if videos:
        failures += _timelines(videos) if _TIMELINE.value is not None else _predictions(videos)
    return 1 if failures else 0


def _predictions(videos: list[str]) -> int:
    """Prints what is seen in each video; returns how many could not be read."""
    from vidpipe import predict

    failures = 0
    predictions = predict.predict(
        _RUN_DIR.value, videos, _BATCH_SIZE.value, _TIMEOUT_SEC.value, gif_dir=_GIF.value
    )
    for prediction in _shown(predictions, len(videos)):
        if prediction.error:
            _tell(prediction.path, prediction.error)
            failures += 1
        elif _JSON.value:
            _print_json({"video": prediction.path} | _answer(prediction))
        else:
            print(prediction.path)
            for name, probability in prediction.probabilities.items():
                print(f"  {probability:7.2%}  {name}")
    return failures


def _timelines(videos: list[str]) -> int:
    """Prints what is seen when in each video; returns how many could not be read, or not to their end."""
    from vidpipe import predict

    failures = 0
    for timeline in predict.write_timelines(
        _RUN_DIR.value, videos, _TIMELINE.value, _WINDOW_SEC.value, _HOP_SEC.value, _BATCH_SIZE.value,
        _TIMEOUT_SEC.value,
    ):  # fmt: skip
        if _JSON.value:
            for window in timeline.windows:
                bounds = {"start_sec": window.start_sec, "end_sec": window.end_sec}
                _print_json({"video": timeline.path} | bounds | _answer(window))
        elif timeline.windows:
            print(timeline.path)
            for start_sec, end_sec, name in predict.stretches(timeline.windows):
                print(f"  {sampling.clock(start_sec):>7} to {sampling.clock(end_sec):>7}  {name}")
            print(f"  {' and '.join(map(str, timeline.files))}")
        if timeline.error:
            _tell(timeline.path, timeline.error)
            failures += 1
    return failures


def _answer(result: "predict.Prediction | predict.WindowPrediction") -> dict[str, Any]:
    return {"predicted": result.predicted, "probabilities": result.probabilities}


def _tell(path: str, error: str) -> None:
    """Of a program's lines none is missing: it gets an object in the place of the answer."""
    print(f"predict.py: {path}: {error}", file=sys.stderr)
    if _JSON.value:
        _print_json({"video": path, "error": error})


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _shown(results: Iterable[_Result], total: int) -> Iterator[_Result]:
    """Counts on stderr where stdout is a file or a program; on a terminal the answers show how far it is."""
    if total == 1 or sys.stdout.isatty():
        yield from results
        return
    with Progress("Predicting", total, "videos") as progress:
        for result in results:
            yield result
            progress.advance()


if __name__ == "__main__":
    cli.run(main)

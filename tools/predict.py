"""Classifies video files with a trained model.

    python tools/predict.py --run_dir=/runs/1 holiday.mp4 /data/new 'cameras/**/street*'
    python tools/predict.py --run_dir=/runs/1 --timeline=out --window_sec=2 --hop_sec=1 match.mp4
    python tools/predict.py --run_dir=/runs/1 --live=rtsp://camera/1

VIDEO is a file, a folder that is searched for videos, or a pattern in quotes. With --timeline=DIR each video
is classified in windows over its time, and these are merged into events. DIR gets a table, a picture and
subtitles of each video, and the events of all in events.csv and events.json. With --live the newest window of
a camera (--live=0) or a network stream is classified again and again, and its events are printed as they end,
until Ctrl-C.

--json prints one object per line: {"video", "predicted", "probabilities"}; for each window of a timeline also
"start_sec" and "end_sec", and for each of its events {"video", "event", "start_sec", "end_sec", "score"}; and
{"video", "error"} for a video that cannot be read. The exit code is 1 if there was such a video. For a stream
it prints {"event", "start", "end", "start_sec", "end_sec", "score"} per event and {"status", "time"} where
the connection changes.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from vidpipe import command_line, devices
from vidpipe.config import PredictionConfig, setting
from vidpipe.inference.video_files import find_videos
from vidpipe.progress import Progress

if TYPE_CHECKING:
    from vidpipe.inference import live, predict, timeline

_log = logging.getLogger(__name__)
_COMMAND = command_line.Command(__doc__, arguments="VIDEO...")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class _OutputFormat:
    json: bool = setting(False, help="Print JSON lines, for programs.", group="Output")


_read_config = _COMMAND.settings(PredictionConfig)
_read_format = _COMMAND.settings(_OutputFormat)


def main(arguments: list[str]) -> int:
    """Videos -> ranked class probabilities or timelines; 1 if a video could not be read."""
    config, as_json = _read_config(), _read_format().json
    if config.live is not None:
        if arguments:
            _COMMAND.usage_error("--live takes no videos")
        _print_live(config, config.live, as_json)
        return 0
    if not arguments:
        _COMMAND.usage_error("name at least one video")
    if config.timeline is None and (_COMMAND.given("window_sec") or _COMMAND.given("hop_sec")):
        _COMMAND.usage_error("--window_sec and --hop_sec need --timeline=DIR or --live")
    videos, unmatched = find_videos(arguments)
    for argument, reason in unmatched.items():
        _report_failure(argument, reason, as_json)
    num_failed = len(unmatched)
    if videos:
        command_line.load_tensorflow()
        devices.prepare(takes_all_memory=False)
        print_results = _print_predictions if config.timeline is None else _print_timelines
        num_failed += print_results(config, videos, as_json)
    return 1 if num_failed else 0


def _print_predictions(config: PredictionConfig, videos: list[str], as_json: bool) -> int:
    """Prints the classes of each video; returns the number of videos that could not be read."""
    from vidpipe.inference import predict

    num_failed = 0
    for prediction in _with_progress(predict.predict(config, videos), len(videos)):
        if prediction.failure is not None:
            _report_failure(prediction.path, prediction.failure.message, as_json)
            num_failed += 1
        elif as_json:
            _print_json({"video": prediction.path} | _as_json(prediction))
        else:
            print(prediction.path)
            for name, probability in prediction.probabilities.items():
                print(f"  {probability:7.2%}  {name}")
    return num_failed


def _print_timelines(config: PredictionConfig, videos: list[str], as_json: bool) -> int:
    """Prints the events of each video; returns the number of videos that could not be read to their end."""
    from vidpipe.data.sampling import clock
    from vidpipe.inference import timeline

    num_failed = 0
    for result in timeline.write_timelines(config, videos):
        if as_json:
            for window in result.windows:
                bounds = {"start_sec": window.start_sec, "end_sec": window.end_sec}
                _print_json({"video": result.path} | bounds | _as_json(window))
            for event in result.events:
                bounds = {"start_sec": event.start_sec, "end_sec": event.end_sec}
                _print_json({"video": result.path, "event": event.label} | bounds | {"score": event.score})
        elif result.windows:
            print(result.path)
            for event in result.events:
                bounds_text = f"{clock(event.start_sec):>7} to {clock(event.end_sec):>7}"
                print(f"  {bounds_text}  {event.score:7.2%}  {event.label}")
            if not result.events:
                print("  no events")
            print(f"  Written: {', '.join(map(str, result.files))}")
        if result.failure is not None:
            _report_failure(result.path, result.failure.message, as_json)
            num_failed += 1
    return num_failed


def _print_live(config: PredictionConfig, address: str, as_json: bool) -> None:
    """Prints the events of a stream as they end; at Ctrl-C also those that have not ended, and the counts."""
    from vidpipe.data import live_stream

    source = live_stream.parse_source(address)
    command_line.load_tensorflow()
    devices.prepare(takes_all_memory=False)
    from vidpipe.inference import live, timeline

    detection = timeline.detection_of(config)
    with live.open_session(
        config.run_dir,
        source,
        detection.rule,
        window_sec=detection.window_sec,
        hop_sec=detection.hop_sec,
        timeout_sec=config.timeout_sec,
    ) as session:
        try:
            for output in session.run():
                if isinstance(output, live.LiveEvent):
                    _print_event(output, as_json)
                elif as_json:
                    details = {"reason": output.reason, "wait_sec": output.wait_sec}
                    _print_status(
                        output.state.value, {name: value for name, value in details.items() if value}
                    )
                else:
                    _log.info("%s: %s.", source.name, output)
        except KeyboardInterrupt:
            for event in session.close():
                _print_event(event, as_json)
            if as_json:
                _print_status("stopped", dataclasses.asdict(session.counts))
            else:
                _log.info("%s: stopped; %s.", source.name, session.counts)
            raise


def _print_event(found: "live.LiveEvent", as_json: bool) -> None:
    event = found.event
    if as_json:
        times = {"start": found.start.isoformat(), "end": found.end.isoformat()}
        seconds = {"start_sec": round(event.start_sec, 6), "end_sec": round(event.end_sec, 6)}
        _print_json({"event": event.label} | times | seconds | {"score": event.score})
    else:
        print(
            f"{found.start:%Y-%m-%d %H:%M:%S} to {found.end:%H:%M:%S}"
            f"  {event.end_sec - event.start_sec:6.1f} s  {event.score:7.2%}  {event.label}",
            flush=True,
        )


def _print_status(status: str, details: dict[str, Any]) -> None:
    _print_json({"status": status, "time": datetime.now().astimezone().isoformat()} | details)


def _as_json(result: "predict.Prediction | timeline.WindowPrediction") -> dict[str, Any]:
    return {"predicted": result.predicted, "probabilities": result.probabilities}


def _report_failure(path: str, message: str, as_json: bool) -> None:
    """Logs a video that could not be read; a program finds it among the JSON lines too."""
    _log.error("%s: %s", path, message)
    if as_json:
        _print_json({"video": path, "error": message})


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _with_progress(results: Iterable[_Result], total: int) -> Iterator[_Result]:
    """Shows the progress on stderr, unless the results themselves appear on a terminal."""
    if total == 1 or sys.stdout.isatty():
        yield from results
        return
    with Progress("Predicting", total, "videos") as progress:
        for result in results:
            yield result
            progress.advance()


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))

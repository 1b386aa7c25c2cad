"""Which steps a profile covers; test_run_log.py and test_loop.py run it in a run."""

import logging
from pathlib import Path

import pytest
import tensorflow as tf

from vidpipe.training.profiler import Profiler


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda folder: found.append(f"start {folder}"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: found.append("stop"))
    return found


def _run(profiler: Profiler, steps: range, events: list[str]) -> None:
    for number in steps:
        profiler.before_step(number)
        events.append(str(number))
        if profiler.is_last(number):
            profiler.stop()
    profiler.stop()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param(range(1, 5), ["1", "start f", "2", "3", "stop", "4"], id="a whole run"),
        pytest.param(range(3, 5), ["start f", "3", "stop", "4"], id="resumed inside"),
        pytest.param(range(4, 6), ["4", "5"], id="resumed after"),
        pytest.param(range(1, 3), ["1", "start f", "2", "stop"], id="ended inside"),
    ],
)
def test_the_profiled_steps(
    events: list[str], steps: range, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        _run(Profiler((2, 3), Path("f")), steps, events)
    assert events == expected
    assert caplog.text.count("Profile written to f.") == events.count("stop")


def test_without_steps_nothing_is_profiled(events: list[str]) -> None:
    _run(Profiler(None, Path("f")), range(1, 4), events)
    assert events == ["1", "2", "3"]

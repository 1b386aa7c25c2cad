"""What a signal does while a run is on, and that it is restored afterwards."""

import os
import signal
import threading

import pytest

from vidpipe.training.stop_signal import StoppedError, StopSignal, stop_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_kept_for_the_end_of_the_step(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(number)
    with stop_signal() as stop:
        assert not stop.is_requested
        os.kill(os.getpid(), number)
        assert stop.is_requested
        assert stop.number == number
    assert f"{number.name}: stopping after this step." in caplog.text
    assert signal.getsignal(number) == before


def test_a_second_signal_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    stop = StopSignal()
    stop.receive(signal.SIGTERM, None)
    assert "Send it again to stop at once" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGINT, None)
    assert stop.number == signal.SIGTERM


def test_handlers_are_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="inside"), stop_signal():
        assert signal.getsignal(signal.SIGTERM) != before
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_signals_are_left_alone() -> None:
    """Python lets only the main thread set handlers."""
    requested: list[bool] = []

    def run() -> None:
        with stop_signal() as stop:
            requested.append(stop.is_requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert requested == [False]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_exit_code_is_that_of_the_signal() -> None:
    assert StoppedError("stopped", signal.SIGTERM).exit_code == 143
    assert StoppedError("stopped", signal.SIGINT).exit_code == 130

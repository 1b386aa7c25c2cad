"""Serves a page and an HTTP endpoint for trying a trained model, on this machine.

    python tools/serve.py --run_dir=/runs/1

The page is at http://127.0.0.1:8000/. Programs send a video to /predict and get JSON, as from predict --json:

    curl -F video=@holiday.mp4 http://127.0.0.1:8000/predict
"""

import signal
import sys

from vidpipe import command_line, devices
from vidpipe.config import ServerConfig
from vidpipe.errors import VidpipeError

_COMMAND = command_line.Command(__doc__)
_read_config = _COMMAND.settings(ServerConfig)


def main(arguments: list[str]) -> None:
    """Flags -> ServerConfig -> serve."""
    del arguments
    config = _read_config()
    try:
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        raise VidpipeError(
            f"The server needs Flask and waitress: pip install 'vidpipe[serve]' ({error})."
        ) from None
    command_line.load_tensorflow()
    devices.prepare(takes_all_memory=False)
    from vidpipe.inference import serve

    # SIGTERM then ends the server as Ctrl-C does: the decoding processes and uploads are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve.serve(config)


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))

"""A local server to try a model: listens, owns the decoding processes, and runs the app of `web_app`.

An upload is stored under a generated name, decoded in a separate process as an untrusted file, and deleted.
"""

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import waitress
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.task import ErrorTask

from vidpipe.config import ServerConfig
from vidpipe.data import process_pool, video
from vidpipe.errors import VidpipeError
from vidpipe.inference import predict, web_app

_log = logging.getLogger(__name__)
# Per process. A decoded clip is copied into this process, so the limit is lower than the converter's.
_PROCESS_MEMORY_MB = 1024
# Connections that only wait make room for new ones, so that nobody can keep the server busy by opening them.
_CONNECTIONS_PER_THREAD = 8
_REQUEST_SEC = 300  # for an upload of the default limit over 6 Mbit/s


class ServeError(VidpipeError):
    """The server cannot start."""


def serve(config: ServerConfig) -> None:
    """Serves a run's model until KeyboardInterrupt, which is raised.

    Raises:
      ModelError: the run has no readable model.
      ServeError: the server cannot listen on the address.
    """
    with open_server(config) as server:
        if not web_app.is_local(config.host):
            _log.warning(
                "Anyone who can reach %s can send videos: there is no encryption and no password.",
                config.host,
            )
        host = f"[{config.host}]" if ":" in config.host else config.host
        _log.info(
            "Serving %s at http://%s:%s/. Press Ctrl-C to stop.", config.run_dir, host, server.effective_port
        )
        server.run()
        raise KeyboardInterrupt  # waitress ends by it and does not pass it on


@contextmanager
def open_server(
    config: ServerConfig, *, read: predict.ReadClip = video.read_untrusted_clip
) -> Iterator[BaseWSGIServer]:
    """Opens a server that listens; its `run()` answers requests.

    Args:
      config: the run, the address and the limits.
      read: what a process calls for an upload; importable by name.

    Raises:
      ModelError, ServeError: as `serve`.
    """
    with (
        _listen(config) as listener,
        process_pool.ReaderPool(
            num_workers=config.threads, timeout_sec=config.timeout_sec, memory_mb=_PROCESS_MEMORY_MB
        ) as pool,
    ):
        classifier = predict.load_classifier(config.run_dir)  # while the processes start
        _trace(classifier)
        predictor = web_app.Predictor(classifier, pool, read)
        app = web_app.make_app(predictor, config, name=Path(config.run_dir).name)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of every request that waits
        server = waitress.create_server(
            app,
            sockets=[listener],
            threads=config.threads,
            # _Channel keeps the number of connections below a lower limit.
            connection_limit=2 * _CONNECTIONS_PER_THREAD * config.threads,
            # An upload slightly above the limit still reaches the app, which answers it. A larger one is
            # rejected by waitress.
            max_request_body_size=web_app.max_upload_bytes(config) + 2**20,
            ident=None,
        )
        server.channel_class = _Channel
        try:
            yield server
        finally:
            server.close()


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        raise ServeError(
            f"Cannot listen on port {config.port} of {config.host} ({reason}). Choose another --port or "
            "--host."
        ) from None


def _trace(classifier: predict.Classifier) -> None:
    """Runs the model once, so that the first request does not wait for TensorFlow to trace it."""
    spec = classifier.metadata.spec
    predict.classify(classifier, [np.zeros((1, spec.height, spec.width, 3), np.uint8)], batch_size=1)


class _ErrorTask(ErrorTask):
    """Answers what waitress rejects before the app sees it, in the app's words."""

    def execute(self) -> None:
        status = HTTPStatus(self.request.error.code)
        message = web_app.MALFORMED
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            message = "The request is larger than this server accepts."
        body = json.dumps({"error": message}).encode()
        self.status = f"{status.value} {status.phrase}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    """A connection, which is closed when a request takes too long to arrive or others need its place.

    waitress closes connections that are silent, but not those that send a byte from time to time.
    """

    error_task_class = _ErrorTask

    def __init__(self, server: BaseWSGIServer, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        waiting = [channel for channel in server.active_channels.values() if not channel.requests]
        if len(server.active_channels) >= _CONNECTIONS_PER_THREAD * server.adj.threads and waiting:
            min(waiting, key=lambda channel: channel.waits_since).handle_close()
        super().__init__(server, sock, *arguments, **options)
        # When the connection was opened, the first byte of the request arrived, or the last answer was sent.
        self.waits_since = time.monotonic()

    def received(self, data: bytes) -> bool:
        """Takes bytes of a request."""
        if self.request is None:
            self.waits_since = time.monotonic()
        return bool(super().received(data))

    def readable(self) -> bool:
        """Whether more bytes may come; called about once a second."""
        if self.requests:
            self.waits_since = time.monotonic()
        elif time.monotonic() - self.waits_since > _REQUEST_SEC:
            self.will_close = True
        return bool(super().readable())

"""A real server and real clients: answers equal those of predict, and no request does harm."""

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from synthetic import (
    brightness_frames,
    content_untrusted_read,
    save_colour_model,
    write_coded_video,
    write_colours,
)
from tools import serve as serve_tool
from vidpipe.config import ClipConfig, ConfigError, PredictionConfig, ServerConfig
from vidpipe.data import video, video_file
from vidpipe.inference import predict, serve, web_app

CLIP = ClipConfig(num_frames=4, image_size=32)
CLASSES = ("blue", "<i>green</i>", "red")
RED, BLUE = (200, 30, 30), (30, 30, 200)
MAX_UPLOAD_MB = 0.25
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Served:
    """A server under test: its port, its run, where it stores uploads, and a red and a blue video."""

    port: int
    run_dir: str
    uploads: Path
    red: Path
    blue: Path

    def stored(self) -> list[str]:
        """Temporary files, without those of TensorFlow."""
        return [path.name for path in self.uploads.iterdir() if not path.name.startswith("__autograph")]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    save_colour_model(folder / "a run & more", CLIP, CLASSES)
    (folder / "uploads").mkdir()
    red, blue = (
        Path(write_colours(folder / f"{name}.avi", [colour] * 3))
        for name, colour in (("red", RED), ("blue", BLUE))
    )
    before, tempfile.tempdir = tempfile.tempdir, str(folder / "uploads")
    config = ServerConfig(
        run_dir=str(folder / "a run & more"), port=0, max_upload_mb=MAX_UPLOAD_MB, timeout_sec=3, threads=2
    )
    with serve.open_server(config, read=content_untrusted_read) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        yield Served(int(server.effective_port), config.run_dir, folder / "uploads", red, blue)
    tempfile.tempdir = before


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    code: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> dict[str, Any]:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


def _ask(served: Served, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def _send(served: Served, content: bytes) -> Answer:
    return _ask(served, "POST", "/predict", content)


def _form(content: bytes, field: str = "video", file_name: str = "a.avi") -> tuple[bytes, str]:
    """The body of a form and its content type."""
    head = f'--xx\r\nContent-Disposition: form-data; name="{field}"; filename="{file_name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--xx--\r\n", "multipart/form-data; boundary=xx"


def _predict(served: Served, path: Path) -> predict.Prediction:
    (prediction,) = predict.predict(PredictionConfig(run_dir=served.run_dir, batch_size=1), [str(path)])
    return prediction


def test_the_answer_equals_that_of_predict(served: Served) -> None:
    for path, name in ((served.red, "red"), (served.blue, "blue")):
        expected = _predict(served, path)
        form, form_type = _form(path.read_bytes())
        for answer in (
            _send(served, path.read_bytes()),
            _ask(served, "POST", "/predict", form, Content_Type=form_type),
            _ask(served, "POST", "/predict?frames=0", path.read_bytes(), Content_Type="video/avi"),
        ):
            assert answer.code == 200
            found = answer.json()
            assert found == {
                "predicted": name, "probabilities": expected.probabilities, "num_frames": 3,
            }  # fmt: skip
            assert list(found["probabilities"]) == list(expected.probabilities)
    assert served.stored() == []


def test_the_answer_contains_the_frames_on_request(served: Served) -> None:
    frames = _ask(served, "POST", "/predict?frames=1", served.red.read_bytes()).json()["frames"]
    assert (frames["num_frames"], frames["height"], frames["width"]) == (3, 32, 32)
    image = cv2.imdecode(np.frombuffer(base64.b64decode(frames["jpeg"]), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (32, 96, 3)
    assert np.abs(image[..., ::-1].reshape(-1, 3).mean(axis=0) - RED).max() < 6


def test_the_health_check_answers(served: Served) -> None:
    assert _ask(served, "GET", "/healthz").json() == {"status": "ok"}


_TOO_LARGE = b"x" * (int(MAX_UPLOAD_MB * 2**20) + 1)
_FORM, _FORM_TYPE = _form(b"x", field="film<b>")
_LARGE_FORM, _ = _form(_TOO_LARGE)
_LOCAL_ONLY, _OWN_PAGES = "local host names only", "no videos from pages of other origins"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "code", "message"),
    [
        pytest.param("POST", "/predict", b"", {}, 400, "The upload is empty: send a video.", id="empty"),
        pytest.param("POST", "/predict", None, {}, 400, "The upload is empty: send a video.", id="no body"),
        pytest.param(
            "POST", "/predict", _FORM, {"Content_Type": _FORM_TYPE}, 400,
            "The form has no file in a field named video.", id="missing field",
        ),
        pytest.param(
            "POST", "/predict", b"garbage", {"Content_Type": "multipart/form-data"}, 400,
            "The form has no file in a field named video.", id="malformed form",
        ),
        pytest.param(
            "POST", "/predict", b"garbage<b>", {}, 422,
            "The file cannot be read as a video: does not open as a video.", id="garbage",
        ),
        pytest.param(
            "POST", "/predict", _TOO_LARGE, {}, 413,
            "The video is larger than the limit of 0.25 MiB.", id="too large",
        ),
        pytest.param(
            "POST", "/predict", _LARGE_FORM, {"Content_Type": _FORM_TYPE}, 413,
            "The video is larger than the limit of 0.25 MiB.", id="too large in a form",
        ),
        pytest.param("GET", "/predict", None, {}, 405, "POST /predict takes a video", id="GET"),
        pytest.param("POST", "/", b"x", {}, 405, "POST /predict takes a video", id="POST"),
        pytest.param("GET", "/<b>", None, {}, 404, "Not found.", id="unknown path"),
        pytest.param("GET", "/../../etc/passwd", None, {}, 404, "Not found.", id="dots"),
        pytest.param("GET", "/%2e%2e/etc/passwd", None, {}, 404, "Not found.", id="encoded dots"),
        pytest.param("GET", "/static/page.js", None, {}, 404, "Not found.", id="static"),
        pytest.param("GET", "/", None, {"Host": "evil.example"}, 403, _LOCAL_ONLY, id="DNS rebinding"),
        pytest.param("GET", "/", None, {"Host": "127.0.0.1.evil.com"}, 403, _LOCAL_ONLY, id="similar host"),
        pytest.param("GET", "/", None, {"Host": "[:"}, 403, _LOCAL_ONLY, id="malformed host"),
        pytest.param(
            "POST", "/predict", b"x", {"Origin": "http://evil.example"}, 403, _OWN_PAGES, id="foreign origin"
        ),
        pytest.param("POST", "/predict", b"x", {"Origin": "null"}, 403, _OWN_PAGES, id="opaque origin"),
        pytest.param(
            "POST", "/predict", b"x", {"Origin": "http://127.0.0.1:1"}, 403, _OWN_PAGES, id="other port"
        ),
    ],
)  # fmt: skip
def test_rejected_requests(
    served: Served,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    code: int,
    message: str,
) -> None:
    answer = _ask(served, method, path, body, **headers)
    assert answer.code == code
    (found,) = answer.json().values()
    assert message in found
    assert found.endswith(".")
    assert b"<b>" not in answer.body
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert served.stored() == []


@pytest.mark.parametrize(
    ("request_text", "code", "message"),
    [
        ("POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999999\r\n\r\n", 413, "larger"),
        ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "malformed"),
    ],
)
def test_a_request_that_waitress_rejects_is_answered_in_json_too(
    served: Served, request_text: str, code: int, message: str
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), 10) as connection:
        connection.sendall(request_text.encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == code
        assert message in json.loads(response.read())["error"]


def test_local_host_names_are_accepted_and_foreign_origins_are_not(served: Served) -> None:
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "[::1]"):
        named = f"{host}:{served.port}"
        answer = _ask(
            served, "POST", "/predict", served.red.read_bytes(), Host=named, Origin=f"http://{named}"
        )
        assert answer.code == 200, host
        for foreign in ("evil.example", "not-", "evil.example/://"):
            origin = f"http://{foreign}{named}"
            assert _ask(served, "POST", "/predict", b"x", Host=named, Origin=origin).code == 403, origin


def test_the_file_name_of_an_upload_is_neither_used_nor_returned(served: Served) -> None:
    for file_name in ("../../escaped.avi", "/escaped.avi", "<b>.avi", "a\\..\\b.avi"):
        form, form_type = _form(served.red.read_bytes(), file_name=file_name)
        answer = _ask(served, "POST", "/predict", form, Content_Type=form_type)
        assert answer.json()["predicted"] == "red"
        assert file_name.encode() not in answer.body
    assert not list(served.uploads.parent.parent.rglob("*escaped*"))
    assert served.stored() == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (b"crash", f"crashed the decoder (exit code {-signal.SIGSEGV})"),
        (b"hang", "timed out after 3 s"),
        (b"memory", "needs more memory than the limit"),
    ],
)
def test_a_decoder_that_fails_costs_its_request_only(served: Served, fault: bytes, reason: str) -> None:
    answer = _send(served, fault)
    assert answer.code == 422
    assert answer.json() == {"error": f"The file cannot be read as a video: {reason}."}
    assert served.stored() == []
    assert _send(served, served.blue.read_bytes()).json()["predicted"] == "blue"


def test_other_requests_are_answered_while_a_decoder_hangs(served: Served) -> None:
    paths = [served.red, served.blue] * 4
    with ThreadPoolExecutor(9) as clients:
        hanging = clients.submit(_send, served, b"hang")
        answers = list(clients.map(lambda path: _send(served, path.read_bytes()), paths))
        assert [answer.json()["predicted"] for answer in answers] == ["red", "blue"] * 4
        assert hanging.result().code == 422


@pytest.mark.parametrize(
    "sent", [b"", b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"], ids=["idle", "half"]
)
def test_connections_that_only_wait_make_room(served: Served, sent: bytes) -> None:
    """Two threads have room for 16 connections; the newest of those that wait are kept."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(40):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=5))
            connection.sendall(sent)
            connections.append(connection)
            assert connection.getsockname()
        assert _ask(served, "GET", "/healthz").code == 200
        assert connections[0].recv(1) == b""
        connections[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" if not sent else b"\r\n")
        assert connections[-1].recv(12).startswith(b"HTTP/1.1 ")


def test_a_request_that_arrives_byte_by_byte_is_ended(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_REQUEST_SEC", 1)
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", served.port), timeout=0.2) as connection:
        for byte in b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n" + bytes(
            1000
        ):
            connection.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                break
    assert 1 < time.monotonic() - start < 6
    assert _send(served, served.red.read_bytes()).json()["predicted"] == "red"


def test_a_video_with_huge_frames_is_rejected(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 7680 * 4320 < video._MAX_UNTRUSTED_PIXELS < 8000 * 8000
    size = video.read_clip(str(served.red), CLIP).info
    monkeypatch.setattr(video, "_MAX_UNTRUSTED_PIXELS", size.height * size.width)
    video.read_untrusted_clip(str(served.red), CLIP)
    monkeypatch.setattr(video, "_MAX_UNTRUSTED_PIXELS", size.height * size.width - 1)
    with pytest.raises(
        video.VideoReadError, match=f"larger than the limit: {size.width} x {size.height} pixels"
    ):
        video.read_untrusted_clip(str(served.red), CLIP)


def test_a_playlist_reads_no_other_file(served: Served, tmp_path: Path) -> None:
    """FFmpeg reads a list of files as a video; an upload could show files of the server by it."""
    write_coded_video(tmp_path / "ours.ts", "libx264", "yuv420p", brightness_frames(12))
    clip = ClipConfig(num_frames=4, sampling="head", image_size=32)  # reads the start only
    lists = {
        "hls.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{tmp_path / 'ours.ts'}\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile ours.ts\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        with av.open(str(tmp_path / name)) as container:
            assert len(list(container.decode(video=0))) == 12
        # By the list of allowed formats, and without it by the limit on open files.
        with pytest.raises(video.VideoReadError, match="this container format is not allowed"):
            video.read_untrusted_clip(str(tmp_path / name), clip)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(video_file, "_OPTIONS", {})
            assert len(video.read_clip(str(tmp_path / name), clip).frames) == 4
            with pytest.raises(video.VideoReadError, match="does not open"):
                video.read_untrusted_clip(str(tmp_path / name), clip)
            assert len(video.read_clip(str(tmp_path / name), clip).frames) == 4  # the limit is lifted again
    assert len(video.read_untrusted_clip(str(tmp_path / "ours.ts"), clip).frames) == 4
    assert _send(served, lists["hls.m3u8"].encode()).code == 422


def _open(browser: webdriver.Chrome, served: Served) -> None:
    browser.get(f"http://127.0.0.1:{served.port}/")


def _choose(browser: webdriver.Chrome, path: Path) -> tuple[str, str]:
    """Chooses a file and waits for the result: the title of the answer, and the problem."""
    browser.find_element(By.ID, "file").send_keys(str(path))
    title, problem = (browser.find_element(By.ID, name) for name in ("answer-title", "problem"))
    WebDriverWait(browser, 20).until(lambda _: title.is_displayed() or problem.text)
    return title.text, problem.text


@pytest.mark.browser
def test_the_page_shows_the_classes_and_the_frames(browser: webdriver.Chrome, served: Served) -> None:
    _open(browser, served)
    assert browser.title == "Try a run & more"
    assert "blue, <i>green</i>, red" in browser.find_element(By.TAG_NAME, "header").text
    expected = _predict(served, served.red)
    ranks = [f"{name} {100 * probability:.1f} %" for name, probability in expected.probabilities.items()]
    assert _choose(browser, served.red) == (ranks[0].replace("red ", "red, "), "")
    assert _texts(browser, "#ranks tbody tr") == ranks
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.bar')]"
        ".map((bar) => bar.style.getPropertyValue('--probability'))"
    )
    assert [float(width) for width in widths] == pytest.approx(list(expected.probabilities.values()))
    pictures = browser.execute_script(
        "return [...document.images].map((image) => [image.naturalWidth, image.naturalHeight, image.alt])"
    )
    assert pictures == [[96, 32, "3 frames of red.avi, as the model saw them"]] * 2
    status = str(browser.find_element(By.ID, "status").get_attribute("textContent"))
    assert status.replace("\xa0", " ") == "red.avi: " + ranks[0].replace("red ", "red, ")
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [found["params"]["request"]["url"] for found in messages if found["method"].endswith("BeSent")]
    home = f"http://127.0.0.1:{served.port}/"
    assert [url for url in requests if not url.startswith("data:")] == [home, f"{home}predict?frames=1"]


def _texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    """The texts of elements, with plain spaces."""
    found = browser.find_elements(By.CSS_SELECTOR, selector)
    return [" ".join(element.text.split()) for element in found]


@pytest.mark.browser
def test_the_page_reports_problems_and_takes_the_next_video(
    browser: webdriver.Chrome, served: Served, tmp_path: Path
) -> None:
    _open(browser, served)
    (tmp_path / "bad.avi").write_bytes(b"garbage")
    (tmp_path / "large.avi").write_bytes(_TOO_LARGE)
    unreadable = "The file cannot be read as a video: does not open as a video."
    assert _choose(browser, tmp_path / "bad.avi") == ("", unreadable)
    assert _choose(browser, served.blue)[0].startswith("blue, ")
    assert browser.find_element(By.ID, "problem").text == ""
    browser.get_log("performance")
    too_large = "The video is larger than the limit of 0.25 MiB."
    assert _choose(browser, tmp_path / "large.avi") == ("", too_large)
    assert "predict" not in str(browser.get_log("performance"))  # it is not even sent


@pytest.mark.browser
def test_a_video_that_is_dropped_on_the_page_is_classified(browser: webdriver.Chrome, served: Served) -> None:
    _open(browser, served)
    content = base64.b64encode(served.blue.read_bytes()).decode()
    browser.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "dropped.avi"));
        const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
        document.querySelector("h1").dispatchEvent(drop);
        if (!drop.defaultPrevented) throw new Error("the browser would open it");
        """,
        content,
    )
    WebDriverWait(browser, 20).until(lambda _: _texts(browser, "#answer-title") != [""])
    assert _texts(browser, "#answer-title")[0].startswith("blue, ")


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 1200])
def test_the_page_fits_its_window(browser: webdriver.Chrome, served: Served, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    _open(browser, served)
    _choose(browser, served.red)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(
    ("host", "address", "is_public"),
    [("127.0.0.1", "127.0.0.1", False), ("::1", "[::1]", False), ("0.0.0.0", "0.0.0.0", True)],
)
def test_the_address_is_logged_with_a_warning_for_a_public_host(
    host: str,
    address: str,
    is_public: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Server:
        effective_port = 8000

        def run(self) -> None:
            pass

    @contextmanager
    def open_server(_: ServerConfig) -> Iterator[Server]:
        yield Server()

    monkeypatch.setattr(serve, "open_server", open_server)
    caplog.set_level("INFO")
    with pytest.raises(KeyboardInterrupt):
        serve.serve(ServerConfig(run_dir="run", host=host))
    *warnings, started = caplog.messages
    assert started == f"Serving run at http://{address}:8000/. Press Ctrl-C to stop."
    assert len(warnings) == is_public
    if is_public:
        assert warnings[0].startswith("Anyone who can reach 0.0.0.0 can send videos")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False), ("203.0.113.7", False)],
)
def test_loopback_addresses_are_local(host: str, expected: bool) -> None:
    assert web_app.is_local(host) == expected


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_cannot_be_listened_on_is_reported(host: str) -> None:
    config = ServerConfig(run_dir="run", host=host)
    message = f"Cannot listen on port 8000 of {host} .*Choose another --port or --host"
    with pytest.raises(serve.ServeError, match=message), serve.open_server(config):
        pytest.fail("the server listens")


def test_a_port_out_of_range_is_wrong_usage() -> None:
    with pytest.raises(ConfigError, match=r"port must be in \[0, 65535\]; got 70000"):
        ServerConfig(run_dir="run", port=70000)


def test_a_port_in_use_is_one_line_and_sigterm_ends_as_ctrl_c_does(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    assert serve_tool.run(["serve.py", f"--run_dir={served.run_dir}", f"--port={served.port}"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(
        f"serve.py: Cannot listen on port {served.port} of 127.0.0.1 (Address already in use)"
    )
    assert errors.count("\n") == 1
    assert handlers[signal.SIGTERM] is signal.default_int_handler


@pytest.mark.processes
def test_the_tool_ends_by_ctrl_c(served: Served) -> None:
    command = [sys.executable, str(ROOT / "tools" / "serve.py"), f"--run_dir={served.run_dir}", "--port=0"]
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        # A shell starts background jobs with SIGINT ignored, and tests inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith(f"Serving {served.run_dir} at http://127.0.0.1:"), line
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, "", "serve.py: interrupted\n")


def test_without_flask_the_tool_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flask", None)  # an import of it fails
    assert serve_tool.run(["serve.py", "--run_dir=r"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("serve.py: The server needs Flask and waitress: pip install 'vidpipe[serve]' (")
    assert errors.count("\n") == 1

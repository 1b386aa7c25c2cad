"""A real server and real clients: the answers are those of predict, and nothing that is sent does harm."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from synthetic import (
    brightness_frames,
    content_lone_read,
    save_colour_model,
    write_coded_video,
    write_colours,
)
from test_tools import TOOLS, run_tool
from vidpipe import predict, serve, video
from vidpipe.config import ClipConfig

CLIP = ClipConfig(num_frames=4, image_size=32)
CLASSES = ("blue", "<i>green</i>", "red")
RED, BLUE = (200, 30, 30), (30, 30, 200)
LIMITS = serve.Limits(max_upload_mb=0.25, timeout_sec=3, threads=2)


@dataclass(frozen=True)
class Served:
    """A server under test: its port, its run, where it keeps uploads, and a red and a blue video."""

    port: int
    run_dir: str
    uploads: Path
    red: Path
    blue: Path

    def kept(self) -> list[str]:
        """Temporary files, but those of TensorFlow."""
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
    run_dir = str(folder / "a run & more")
    with serve.open_server(run_dir, "127.0.0.1", 0, LIMITS, content_lone_read) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        yield Served(int(server.effective_port), run_dir, folder / "uploads", red, blue)
    tempfile.tempdir = before


@dataclass(frozen=True)
class Answer:
    """Of an HTTP server."""

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
    """A form's body, and its type."""
    head = f'--xx\r\nContent-Disposition: form-data; name="{field}"; filename="{file_name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--xx--\r\n", "multipart/form-data; boundary=xx"


def test_the_answer_is_that_of_predict(served: Served) -> None:
    for path, name in ((served.red, "red"), (served.blue, "blue")):
        (expected,) = predict.predict(served.run_dir, [str(path)], batch_size=1)
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
    assert served.kept() == []


def test_the_frames_that_were_seen_come_if_asked_for(served: Served) -> None:
    frames = _ask(served, "POST", "/predict?frames=1", served.red.read_bytes()).json()["frames"]
    assert (frames["num_frames"], frames["height"], frames["width"]) == (3, 32, 32)
    image = cv2.imdecode(np.frombuffer(base64.b64decode(frames["jpeg"]), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (32, 96, 3)
    assert np.abs(image[..., ::-1].reshape(-1, 3).mean(axis=0) - RED).max() < 6


def test_it_is_healthy(served: Served) -> None:
    assert _ask(served, "GET", "/healthz").json() == {"status": "ok"}


_TOO_LARGE = b"x" * (LIMITS.max_bytes + 1)
_FORM, _FORM_TYPE = _form(b"x", field="film<b>")
_LARGE_FORM, _ = _form(_TOO_LARGE)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "code", "sentence"),
    [
        pytest.param("POST", "/predict", b"", {}, 400, "There is no video: the upload is empty.", id="empty"),
        pytest.param("POST", "/predict", None, {}, 400, "There is no video: the upload is empty.", id="none"),
        pytest.param(
            "POST", "/predict", _FORM, {"Content_Type": _FORM_TYPE}, 400,
            "The form has no file in a field named video.", id="missing field",
        ),
        pytest.param(
            "POST", "/predict", b"garbage", {"Content_Type": "multipart/form-data"}, 400,
            "The form has no file in a field named video.", id="no form",
        ),
        pytest.param(
            "POST", "/predict", b"garbage<b>", {}, 422,
            "This file cannot be read as a video (does not open as a video).", id="garbage",
        ),
        pytest.param(
            "POST", "/predict", _TOO_LARGE, {}, 413,
            "The video is larger than the 0.25 MB that are taken here.", id="too large",
        ),
        pytest.param(
            "POST", "/predict", _LARGE_FORM, {"Content_Type": _FORM_TYPE}, 413,
            "The video is larger than the 0.25 MB that are taken here.", id="too large in a form",
        ),
        pytest.param("GET", "/predict", None, {}, 405, "POST /predict takes a video", id="GET"),
        pytest.param("POST", "/", b"x", {}, 405, "POST /predict takes a video", id="POST"),
        pytest.param("GET", "/<b>", None, {}, 404, "There is nothing here.", id="nothing"),
        pytest.param("GET", "/../../etc/passwd", None, {}, 404, "There is nothing here.", id="dots"),
        pytest.param("GET", "/%2e%2e/etc/passwd", None, {}, 404, "There is nothing here.", id="coded dots"),
        pytest.param("GET", "/static/page.js", None, {}, 404, "There is nothing here.", id="static"),
        pytest.param("GET", "/", None, {"Host": "evil.example"}, 403, "names such as", id="rebound"),
        pytest.param("GET", "/", None, {"Host": "127.0.0.1.evil.com"}, 403, "names such as", id="likeness"),
        pytest.param("GET", "/", None, {"Host": "[:"}, 403, "names such as", id="no name"),
        pytest.param(
            "POST", "/predict", b"x", {"Origin": "http://evil.example"}, 403, "pages of others", id="foreign"
        ),
        pytest.param("POST", "/predict", b"x", {"Origin": "null"}, 403, "pages of others", id="no origin"),
        pytest.param(
            "POST", "/predict", b"x", {"Origin": "http://127.0.0.1:1"}, 403, "pages of others", id="port"
        ),
    ],
)  # fmt: skip
def test_refusals(
    served: Served,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    code: int,
    sentence: str,
) -> None:
    answer = _ask(served, method, path, body, **headers)
    assert answer.code == code
    (told,) = answer.json().values()
    assert sentence in told
    assert told.endswith(".")
    assert b"<b>" not in answer.body
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert served.kept() == []


@pytest.mark.parametrize(
    ("request_text", "code", "sentence"),
    [
        ("POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999999\r\n\r\n", 413, "larger"),
        ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "cannot be understood"),
    ],
)
def test_what_never_gets_to_the_app_is_told_in_json_too(
    served: Served, request_text: str, code: int, sentence: str
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), 10) as connection:
        connection.sendall(request_text.encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == code
        assert sentence in json.loads(response.read())["error"]


def test_its_own_names_are_answered_to(served: Served) -> None:
    for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "[::1]"):
        named = f"{host}:{served.port}"
        answer = _ask(
            served, "POST", "/predict", served.red.read_bytes(), Host=named, Origin=f"http://{named}"
        )
        assert answer.code == 200, host
        for stranger in ("evil.example", "not-", "evil.example/://"):
            origin = f"http://{stranger}{named}"
            assert _ask(served, "POST", "/predict", b"x", Host=named, Origin=origin).code == 403, origin


def test_a_file_name_is_neither_used_nor_told(served: Served) -> None:
    for file_name in ("../../escaped.avi", "/escaped.avi", "<b>.avi", "a\\..\\b.avi"):
        form, form_type = _form(served.red.read_bytes(), file_name=file_name)
        answer = _ask(served, "POST", "/predict", form, Content_Type=form_type)
        assert answer.json()["predicted"] == "red"
        assert file_name.encode() not in answer.body
    assert not list(served.uploads.parent.parent.rglob("*escaped*"))
    assert served.kept() == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (b"crash", f"crashed the decoder (exit code {-signal.SIGSEGV})"),
        (b"hang", "timed out after 3 s"),
        (b"memory", "larger than the limit of memory"),
    ],
)
def test_a_decoder_that_fails_costs_its_request(served: Served, fault: bytes, reason: str) -> None:
    answer = _send(served, fault)
    assert answer.code == 422
    assert answer.json() == {"error": f"This file cannot be read as a video ({reason})."}
    assert served.kept() == []
    assert _send(served, served.blue.read_bytes()).json()["predicted"] == "blue"


def test_while_one_hangs_others_are_answered(served: Served) -> None:
    paths = [served.red, served.blue] * 4
    with ThreadPoolExecutor(9) as clients:
        hanging = clients.submit(_send, served, b"hang")
        answers = list(clients.map(lambda path: _send(served, path.read_bytes()), paths))
        assert [answer.json()["predicted"] for answer in answers] == ["red", "blue"] * 4
        assert hanging.result().code == 422


def test_a_playlist_reads_nothing(served: Served, tmp_path: Path) -> None:
    """FFmpeg takes a list of files for a video; a stranger could look at ours by it."""
    write_coded_video(tmp_path / "ours.ts", "libx264", "yuv420p", brightness_frames(12))
    clip = ClipConfig(num_frames=4, sampling="head", image_size=32)  # without a look at the end
    lists = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{tmp_path / 'ours.ts'}\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile ours.ts\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        # OpenCV 5's FFmpeg wants a playlist to be named as one.
        if name == "concat" or cv2.__version__ < "5":
            assert len(video.read_clip(str(tmp_path / name), clip).frames) == 4
        with pytest.raises(video.VideoReadError, match="does not open"):
            video.read_lone_clip(str(tmp_path / name), clip)
    assert len(video.read_clip(str(tmp_path / "concat"), clip).frames) == 4  # the limit is lifted again
    assert len(video.read_lone_clip(str(tmp_path / "ours.ts"), clip).frames) == 4
    assert _send(served, lists["hls"].encode()).code == 422


def _open(browser: webdriver.Chrome, served: Served) -> None:
    browser.get(f"http://127.0.0.1:{served.port}/")


def _choose(browser: webdriver.Chrome, path: Path) -> tuple[str, str]:
    """Chooses a file and waits for what comes of it: the answer's title, and the problem."""
    browser.find_element(By.ID, "file").send_keys(str(path))
    title, problem = (browser.find_element(By.ID, name) for name in ("answer-title", "problem"))
    WebDriverWait(browser, 20).until(lambda _: title.is_displayed() or problem.text)
    return title.text, problem.text


def test_the_page_shows_what_is_seen(browser: webdriver.Chrome, served: Served) -> None:
    _open(browser, served)
    assert browser.title == "Try a run & more"
    assert "blue, <i>green</i>, red" in browser.find_element(By.TAG_NAME, "header").text
    (expected,) = predict.predict(served.run_dir, [str(served.red)], batch_size=1)
    ranks = [f"{name} {100 * share:.1f} %" for name, share in expected.probabilities.items()]
    assert _choose(browser, served.red) == (ranks[0].replace("red ", "red, "), "")
    assert _texts(browser, "#ranks tbody tr") == ranks
    shares = browser.execute_script(
        "return [...document.querySelectorAll('.bar')].map((bar) => bar.style.getPropertyValue('--share'))"
    )
    assert [float(share) for share in shares] == pytest.approx(list(expected.probabilities.values()))
    pictures = browser.execute_script(
        "return [...document.images].map((image) => [image.naturalWidth, image.naturalHeight, image.alt])"
    )
    assert pictures == [[96, 32, "3 frames of red.avi, as the model saw them"]] * 2
    status = str(browser.find_element(By.ID, "status").get_attribute("textContent"))
    assert status.replace("\xa0", " ") == "red.avi: " + ranks[0].replace("red ", "red, ")
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [found["params"]["request"]["url"] for found in messages if found["method"].endswith("BeSent")]
    home = f"http://127.0.0.1:{served.port}/"
    assert [url for url in asked if not url.startswith("data:")] == [home, f"{home}predict?frames=1"]


def _texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    """With every space a plain one."""
    found = browser.find_elements(By.CSS_SELECTOR, selector)
    return [" ".join(element.text.split()) for element in found]


def test_the_page_tells_what_is_wrong_and_goes_on(
    browser: webdriver.Chrome, served: Served, tmp_path: Path
) -> None:
    _open(browser, served)
    (tmp_path / "bad.avi").write_bytes(b"garbage")
    (tmp_path / "large.avi").write_bytes(_TOO_LARGE)
    bad = "This file cannot be read as a video (does not open as a video)."
    assert _choose(browser, tmp_path / "bad.avi") == ("", bad)
    assert _choose(browser, served.blue)[0].startswith("blue, ")
    assert browser.find_element(By.ID, "problem").text == ""
    browser.get_log("performance")
    assert _choose(browser, tmp_path / "large.avi") == (
        "", "The video is larger than the 0.25 MB that are taken here.",
    )  # fmt: skip
    assert "predict" not in str(browser.get_log("performance"))  # it is not even sent


def test_a_video_that_is_dropped_on_the_page_is_looked_at(browser: webdriver.Chrome, served: Served) -> None:
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


@pytest.mark.parametrize("width", [320, 1200])
def test_the_page_fits(browser: webdriver.Chrome, served: Served, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    _open(browser, served)
    _choose(browser, served.red)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_another_host_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Server:
        effective_port = 8000

        def run(self) -> None:
            pass

    @contextmanager
    def open_server(*_: Any) -> Iterator[Server]:
        yield Server()

    monkeypatch.setattr(serve, "open_server", open_server)
    caplog.set_level("INFO")
    for host, address in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "0.0.0.0")):
        caplog.clear()
        with pytest.raises(KeyboardInterrupt):
            serve.serve("run", host, 8000, serve.Limits())
        assert caplog.messages[-1] == f"run is at http://{address}:8000/ until Ctrl-C."
        assert (len(caplog.messages) == 2) == (host == "0.0.0.0")
    assert caplog.messages[0].startswith("Whoever reaches 0.0.0.0 may send videos")


@pytest.mark.parametrize(
    ("host", "port"), [("no.such.host.invalid", 8000), ("127.0.0.1", 70000), ("203.0.113.7", 8000)]
)
def test_an_address_that_cannot_be_had(host: str, port: int) -> None:
    with (
        pytest.raises(serve.ServeError, match=f"Cannot listen on port {port} of {host} .*Give another"),
        serve.open_server("run", host, port, serve.Limits()),
    ):
        pass


def test_the_tool_ends_by_control_c_and_by_a_port_in_use(served: Served) -> None:
    command = [sys.executable, str(TOOLS / "serve.py"), f"--run_dir={served.run_dir}", "--port=0"]
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        # Tests that run in a shell's background would hand on that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith(f"{served.run_dir} is at http://127.0.0.1:"), line
    port = line.split(":")[-1].split("/")[0]
    ended = run_tool("serve.py", f"--run_dir={served.run_dir}", f"--port={port}")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, "", "serve.py: interrupted\n")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"serve.py: Cannot listen on port {port} of 127.0.0.1 (Address already in use)"
    )
    assert ended.stderr.count("\n") == 1


def test_without_flask_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flask.py").write_text("raise ImportError('No module named flask')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    ended = run_tool("serve.py", "--run_dir=r")
    assert (ended.returncode, ended.stderr) == (
        1, "serve.py: This needs Flask: pip install 'vidpipe[serve]' (No module named flask).\n",
    )  # fmt: skip

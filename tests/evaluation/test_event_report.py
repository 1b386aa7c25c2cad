"""The report of events by its files, and in a real browser that plays a video."""

import base64
import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from synthetic import LOW_CONTRAST, brightness_frames, write_coded_video
from vidpipe.evaluation.event_metrics import EventError, VideoEvents, compute_event_metrics
from vidpipe.evaluation.event_report import EventReport, events_page, write
from vidpipe.evaluation.events import Event, EventRule

_HOSTILE = "<script>alert('x')</script>"
_CLASSES = [_HOSTILE, "run", *(f"class {index}" for index in range(2, 9)), "none at all"]
_LATE = 0.6  # seconds by which a busy machine may stop a video late; the video itself is longer
_RULE = EventRule(smoothing_sec=2, high=0.6, low=0.3, min_sec=0, background="background")


def _report(folder: Path) -> EventReport:
    """Makes four videos: perfect, one of two events found, empty, and two errors of an .avi file."""
    videos = [
        VideoEvents(
            video=str(folder / "perfect.mp4"),
            duration_sec=100,
            labelled=[Event("run", 10, 20)],
            predicted=[Event("run", 10, 20, 0.75)],
        ),
        VideoEvents(
            video=str(folder / "half #1 & more.webm"),
            duration_sec=2.76,
            labelled=[Event("run", 0.5, 1.1), Event(_HOSTILE, 1, 2)],
            predicted=[Event("run", 0.5, 1.1, 0.5), Event("class 8", 1.5, 2.3, 0.25)],
        ),
        VideoEvents(video=str(folder / "empty.mov"), duration_sec=0, labelled=[], predicted=[]),
        VideoEvents(
            video="archive/old.avi",
            duration_sec=3700,
            labelled=[Event("run", 60, 120), Event("class 2", 60, 120)],
            predicted=[],
        ),
    ]
    return EventReport(
        name="a run & more",
        split="test",
        metrics=compute_event_metrics(videos, _CLASSES),
        videos=videos,
        rule=_RULE,
        provenance={"Command": "python tools/x.py --run_dir='a run'"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the second video, and the report in its folder `report`."""
    folder = tmp_path_factory.mktemp("events")
    frames = np.repeat(brightness_frames(23), 3, axis=0)  # 2.76 s
    write_coded_video(folder / "half #1 & more.webm", "libvpx", "yuv420p", frames)
    write(_report(folder), folder / "report")
    return folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report" / "events.html").read_text(encoding="utf-8")


def test_the_metrics_are_written_last_and_for_programs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads((folder / "report" / "metrics.json").read_text())
    assert {name: found.pop(name) for name in ("split", "rule", "match_tiou")} == {
        "split": "test",
        "rule": {"smoothing_sec": 2, "high": 0.6, "low": 0.3, "min_sec": 0, "background": "background"},
        "match_tiou": 0.5,
    }
    assert found == _report(folder).metrics
    assert (found["num_videos"], found["num_labelled"], found["num_matched"]) == (4, 5, 2)
    assert found["per_class"][-1]["ap_50_95"] is None

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vidpipe.evaluation.event_report.events_page", fail)
    with pytest.raises(EventError, match=f"Cannot write to {tmp_path} .No space left on device.. Choose"):
        write(_report(folder), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.csv"]


def test_events_are_listed_with_their_matches(folder: Path) -> None:
    with (folder / "report" / "events.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["video", "kind", "class", "start_sec", "end_sec", "score", "matched_tiou"]
    half, old = str(folder / "half #1 & more.webm"), "archive/old.avi"
    assert rows[3:] == [
        [half, "labelled", "run", "0.5", "1.1", "", "1.0"],
        [half, "predicted", "run", "0.5", "1.1", "0.5", "1.0"],
        [half, "labelled", _HOSTILE, "1", "2", "", ""],
        [half, "predicted", "class 8", "1.5", "2.3", "0.25", ""],
        [old, "labelled", "run", "60", "120", "", ""],
        [old, "labelled", "class 2", "60", "120", "", ""],
    ]


def test_the_policy_allows_videos_and_one_script_without_values(text: str) -> None:
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*)">', text)
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; media-src 'self' file:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'"
    )
    other = EventReport(
        name="b", split="val", metrics=compute_event_metrics([_video()], ["x"]), videos=[_video()],
        rule=_RULE, provenance={},
    )  # fmt: skip
    assert f"<script>{script}</script>" in events_page(other, ".")


def _video(name: str = "x.mp4") -> VideoEvents:
    return VideoEvents(video=name, duration_sec=5, labelled=[Event("x", 1, 2)], predicted=[])


@pytest.mark.parametrize(
    ("video", "source"),
    [
        ("/videos/a b/ö#1.mp4", "../../videos/a%20b/%C3%B6%231.mp4"),
        ("/runs/1/c.MOV", "c.MOV"),
        ("/runs/1/javascript:x.webm", "javascript%3Ax.webm"),
        ("/videos/a.avi", None),
        ("/videos/a.mkv", None),
        ("s3://bucket/a.mp4", None),
    ],
)
def test_videos_are_found_from_the_page(video: str, source: str | None) -> None:
    report = EventReport(
        name="a", split="val", metrics=compute_event_metrics([_video()], ["x"]), videos=[_video(video)],
        rule=_RULE, provenance={},
    )  # fmt: skip
    page = events_page(report, "/runs/1")
    assert re.findall('<video .*src="(.*?)"', page) == ([source] if source else [])
    assert page.count("data-start=") == (2 if source else 0)
    assert ("A browser cannot play this video" in page) == (source is None)
    assert "need at least 2 videos" in page


def test_the_worst_video_comes_first(text: str) -> None:
    """Two missed events; one of two; a perfect video; one without events, of which nothing can be wrong."""
    names = re.findall(r'id="video-\d-title">(.*)</h3>', text)
    names = [name.replace("<wbr>", "").rpartition("/")[2] for name in names]
    assert names == ["old.avi", "half #1 &amp; more.webm", "perfect.mp4", "empty.mov"]
    assert "F1 0.500: 1 of 2 labelled events found, 1 of 2 predicted events false." in text
    assert "No events, and none are predicted." in text
    assert "<strong>2 of 5 labelled events are found, and 1 of 3 predicted events are false</strong>" in text


def test_of_equal_videos_the_one_with_more_errors_comes_first() -> None:
    videos = [
        VideoEvents(video=f"{count}.mp4", duration_sec=9, labelled=[Event("x", 0, 1)] * count, predicted=[])
        for count in (1, 3, 2)
    ]
    report = EventReport(
        name="a", split="val", metrics=compute_event_metrics(videos, ["x"]), videos=videos, rule=_RULE,
        provenance={},
    )  # fmt: skip
    assert re.findall(r'-title">(\d).mp4</h3>', events_page(report, ".")) == ["3", "2", "1"]


def _section(text: str, number: int) -> str:
    return text.split(f'id="video-{number}"')[1].split("</section>")[0]


def test_events_are_placed_by_their_times(text: str) -> None:
    """Of 3700 s: events from 60 to 120 s, one below the other as they overlap; ticks every 10 minutes."""
    section = _section(text, 1)
    places = re.findall(r'class="bar" .*? x="([^"]*)%" y="(\d+)" width="(.*?)%"', section)
    assert places == [("1.6216", "22", "1.6216"), ("1.6216", "46", "1.6216")]
    assert re.findall(r'text-anchor="(.*?)">(.*?)<', section) == [
        ("start", "0:00"), ("middle", "10:00"), ("middle", "20:00"), ("middle", "30:00"), ("middle", "40:00"),
        ("middle", "50:00"), ("end", "60:00"),
    ]  # fmt: skip
    assert "Predicted: none" in section


def test_events_have_titles_and_errors_a_cross(text: str) -> None:
    section = _section(text, 2)
    hostile = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
    assert re.findall("<title>(.*?)</title>", section) == [
        "run, 0:00.5 to 0:01.1, labelled: found, tIoU 1.00",
        f"{hostile}, 0:01 to 0:02, labelled: missed",
        "run, 0:00.5 to 0:01.1, predicted, score 0.50: correct, tIoU 1.00",
        "class 8, 0:01.5 to 0:02.3, predicted, score 0.25: false",
    ]
    assert (
        re.findall(r'<g class="event( wrong)?".*?(✕)?</text></g>|<g class="event"', section).count(("", ""))
        == 2
    )
    assert section.count("✕") == 2
    # Class 0 and class 8 share a colour, and differ in the pattern.
    bars = re.findall(r"--series-(\d).*?/>(<rect class=\"pattern\" fill=\"url\(#(.*?)\))?", section)
    assert [(colour, pattern) for colour, _, pattern in bars] == [
        ("1", ""), ("0", ""), ("1", ""), ("0", "pattern-1"), ("0", ""), ("1", ""), ("0", "pattern-1"),
    ]  # fmt: skip
    assert "<script>alert" not in text


@pytest.fixture
def opened(browser: webdriver.Chrome, folder: Path) -> webdriver.Chrome:
    browser.get((folder / "report" / "events.html").as_uri())
    return browser


def _playable(browser: webdriver.Chrome) -> tuple[WebElement, WebElement]:
    """Returns the section of the second video, and its player."""
    section = browser.find_element(By.ID, "video-2")
    browser.execute_script("arguments[0].scrollIntoView()", section)
    return section, section.find_element(By.TAG_NAME, "video")


def _state(browser: webdriver.Chrome, player: WebElement) -> tuple[float, bool]:
    return tuple(browser.execute_script("return [arguments[0].currentTime, arguments[0].paused]", player))


def _wait_until_paused(browser: webdriver.Chrome, player: WebElement) -> float:
    script = "return arguments[0].paused && arguments[0].currentTime > 0 && !arguments[0].seeking"
    WebDriverWait(browser, 10, 0.05).until(lambda _: browser.execute_script(script, player))
    return _state(browser, player)[0]


@pytest.mark.browser
def test_an_event_plays_from_its_start_to_its_end(opened: webdriver.Chrome) -> None:
    section, player = _playable(opened)
    assert opened.execute_script("return arguments[0].readyState", player) == 0  # nothing is loaded yet
    opened.execute_script(
        "window.times = []; const player = arguments[0];"
        "player.addEventListener('timeupdate', () => window.times.push(player.currentTime))",
        player,
    )
    section.find_elements(By.CSS_SELECTOR, ".timeline [data-start]")[1].click()
    assert 2 <= _wait_until_paused(opened, player) < _LATE + 2
    times = opened.execute_script("return window.times")
    assert times == sorted(times) and times[0] == pytest.approx(1, abs=0.3)
    line = str(section.find_element(By.CSS_SELECTOR, ".playhead").get_attribute("x1"))
    assert float(line.rstrip("%")) == pytest.approx(85, abs=15)
    assert opened.get_log("browser") == []
    section.find_element(By.TAG_NAME, "summary").click()
    section.find_elements(By.CSS_SELECTOR, "td .button")[0].click()
    assert 1.1 <= _wait_until_paused(opened, player) < _LATE + 1.1


@pytest.mark.browser
def test_events_play_by_keyboard(opened: webdriver.Chrome) -> None:
    section, player = _playable(opened)
    events = section.find_elements(By.CSS_SELECTOR, ".timeline [role=button]")
    assert [event.get_attribute("tabindex") for event in events] == ["0", "-1", "-1", "-1"]
    opened.execute_script("arguments[0].focus()", events[0])
    events[0].send_keys(Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    focused = opened.switch_to.active_element
    assert focused.accessible_name.startswith("<script>alert('x')</script>, 0:01 to 0:02")
    assert [event.get_attribute("tabindex") for event in events] == ["-1", "0", "-1", "-1"]
    focused.send_keys(Keys.ENTER)
    assert 2 <= _wait_until_paused(opened, player) < _LATE + 2
    focused.send_keys(Keys.ARROW_LEFT)
    opened.switch_to.active_element.send_keys(Keys.SPACE)
    assert 1.1 <= _wait_until_paused(opened, player) < _LATE + 1.1


@pytest.mark.browser
def test_moving_elsewhere_leaves_the_event(opened: webdriver.Chrome) -> None:
    """The video then plays to its own end instead of that of the event."""
    section, player = _playable(opened)
    section.find_elements(By.CSS_SELECTOR, ".timeline [data-start]")[0].click()
    WebDriverWait(opened, 10, 0.05).until(lambda _: _state(opened, player)[0] > 0.55)
    opened.execute_script("arguments[0].currentTime = 1.2; arguments[0].play()", player)
    assert _wait_until_paused(opened, player) == pytest.approx(2.76, abs=0.15)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_follows_the_colour_scheme(
    browser: webdriver.Chrome, folder: Path, width: int, scheme: str
) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((folder / "report" / "events.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    bar = browser.find_element(By.CSS_SELECTOR, "#video-3 .bar")
    assert bar.size["width"] == pytest.approx(
        browser.find_element(By.CSS_SELECTOR, "#video-3 .timeline").size["width"] / 10, abs=4
    )
    red = {"light": 11, "dark": 108}[scheme]
    legend = browser.find_elements(By.CSS_SELECTOR, "#video-2 .legend .bar")[0]
    assert legend.value_of_css_property("fill").startswith(f"rgb({red}, ")
    assert browser.execute_script("return document.scripts.length") == 1
    count, low = browser.execute_script(LOW_CONTRAST)
    assert count > 100
    assert low == []

"""Pages by their values, and in a real browser."""

import base64
import dataclasses
import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from synthetic import brightness_frames, frame_indices_of
from vidpipe import evaluate, page, report

HOSTILE = (
    "<script>alert(1)</script>", "$\\frac{1}{0}$", "\"quotes\" & 'more'", "跳水 Ünï", "_x", "{{ 7 * 7 }}",
)  # fmt: skip
HISTORY = [
    {
        "epoch": 1,
        "loss": 2.5,
        "accuracy": 0.2,
        "val_loss": 1.25,
        "val_loss_error": 0.25,
        "val_accuracy": 0.625,
        "learning_rate": 1e-3,
    },
    {
        "epoch": 2,
        "loss": 1.5,
        "accuracy": 0.7,
        "val_loss": 1.625,
        "val_accuracy": 0.75,
        "learning_rate": 5e-4,
    },
]


def _invented(classes: tuple[str, ...], num_clips: int, absent: int = 0) -> page.EvaluationReport:
    """Scores that are often right; the last `absent` classes have no clip."""
    random = np.random.default_rng(len(classes))
    labels = np.arange(num_clips) % (len(classes) - absent)
    scores = random.gamma(0.3, size=(num_clips, len(classes)))
    scores[np.arange(num_clips), labels] += random.gamma(2, size=num_clips)
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    mistakes, uncertain = evaluate.clips_to_look_at(labels, probabilities, 12)
    return page.EvaluationReport(
        name="a run & more",
        metrics={"split": "test", "views": 1} | evaluate.compute_metrics(labels, probabilities, classes),
        video_ids=[f"of {classes[label]}/{place}.avi" for place, label in enumerate(labels)],
        labels=labels,
        probabilities=probabilities,
        curves=evaluate.precision_recall_curves(labels, probabilities),
        mistakes=mistakes,
        uncertain=uncertain,
        frames=dict.fromkeys([*mistakes, *uncertain], brightness_frames(5, 48, 48)),
        history=HISTORY,
        settings={"epochs": 2, "model": {"backbone": "vgg16", "dropout": None}},
        made={"Command": "python tools/evaluate.py --run_dir='a run'", "Date": "2026-11-23 20:00+00:00"},
    )


@pytest.fixture(scope="module")
def small() -> page.EvaluationReport:
    return _invented(HOSTILE, 47, absent=1)


@pytest.fixture(scope="module")
def small_page(small: page.EvaluationReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "report.html"
    path.write_text(page.evaluation_page(small), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "report.html"
    evaluated = _invented(tuple(f"SomeLongClassName{place:03d}" for place in range(101)), 4000, absent=1)
    path.write_text(page.evaluation_page(evaluated), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: webdriver.Chrome, small_page: Path) -> webdriver.Chrome:
    browser.get(small_page.as_uri())
    return browser


def _emulate(browser: webdriver.Chrome, **features: str) -> None:
    named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})


def _column(browser: webdriver.Chrome, table: str, column: int) -> list[str]:
    """What the shown rows of a table have in a column."""
    script = "const rows = [...document.getElementById(arguments[0]).tBodies[0].rows];"
    script += "return rows.map((row) => row.cells[arguments[1]].textContent)"
    return browser.execute_script(script, table, column)


def _press(browser: webdriver.Chrome, table: str, column: int) -> str:
    """Presses a header's button; how the column is sorted then."""
    header = browser.find_elements(By.CSS_SELECTOR, f"#{table} th[scope=col]")[column]
    header.find_element(By.TAG_NAME, "button").click()
    return str(header.get_attribute("aria-sort"))


def _texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def test_a_page_asks_for_nothing_and_shows_its_pictures(opened: webdriver.Chrome, small_page: Path) -> None:
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [found["params"]["request"]["url"] for found in messages if found["method"].endswith("BeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [small_page.as_uri()]
    pictures = opened.execute_script("return [...document.images].map((i) => [i.naturalWidth, i.alt])")
    assert len(pictures) == 3 + len(opened.find_elements(By.CSS_SELECTOR, "#look li")) > 15
    assert all(width > 0 and words for width, words in pictures)


def test_the_policy_lets_no_other_script_run_and_nothing_load(small_page: Path) -> None:
    text = small_page.read_text(encoding="utf-8")
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*)">', text)
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'"
    )
    assert not re.findall(r'(?:src|href|srcset)="(?!data:|#)', text)


def test_names_are_shown_as_they_are(opened: webdriver.Chrome, small: page.EvaluationReport) -> None:
    assert opened.execute_script("return document.scripts.length") == 1
    assert opened.title == f"a run & more on test: {100 * small.metrics['accuracy']:.1f}\u00a0%"
    assert _column(opened, "classes-table", 0) == list(HOSTILE)
    assert _column(opened, "clips-table", 0) == small.video_ids
    assert _texts(opened, ".matrix tbody th") == list(HOSTILE)
    shown = [*small.mistakes, *small.uncertain]
    assert _texts(opened, "#look .small") == [small.video_ids[place] for place in shown]
    predicted = [HOSTILE[small.probabilities[place].argmax()] for place in shown]
    assert _texts(opened, "#look p:first-of-type strong") == predicted
    compared = []  # the true class, or behind it the next
    for place in shown:
        best, second = np.argsort(-small.probabilities[place])[:2]
        label = small.labels[place]
        word, other = ("then", second) if best == label else ("true", label)
        compared.append(f"{word} {HOSTILE[other]} {100 * small.probabilities[place, other]:.1f} %")
    assert _texts(opened, "#look p:nth-of-type(2)") == compared


def test_the_numbers_are_those_of_the_metrics(opened: webdriver.Chrome, small: page.EvaluationReport) -> None:
    metrics = small.metrics
    values = dict(zip(_texts(opened, "dt"), _texts(opened, ".number dd:first-of-type"), strict=False))
    for name, key in (("Accuracy", "accuracy"), ("Mean class accuracy", "mean_class_accuracy")):
        assert values[name] == f"{100 * metrics[key]:.1f} %"
    assert values["Top-5 accuracy"] == f"{100 * metrics['top_5_accuracy']:.1f} %"
    assert values["Commonest class alone"] == f"{1000 / 47:.1f} %"
    for name, key in (("Loss", "loss"), ("Mean average precision", "mean_average_precision")):
        assert values[name] == f"{metrics[key]:.3f}"
    assert values["Calibration error"] == f"{metrics['calibration_error']:.3f}"
    low, high = (f"{100 * bound:.1f} %" for bound in metrics["accuracy_ci95"])
    right = np.trace(metrics["confusion_matrix"])
    notes = _texts(opened, ".number dd.muted")
    assert notes[0] == f"{right} of 47 clips; 95 % interval {low} to {high}"
    assert notes[1].startswith("over 5 classes, 47 clips; 95 % interval ")
    cells = [[int(cell) for cell in _column(opened, "matrix-table", place + 1)] for place in range(6)]
    assert np.transpose(cells).tolist() == metrics["confusion_matrix"]
    assert _column(opened, "classes-table", 6)[-1] == "–"
    probabilities = [float(text) for text in _column(opened, "clips-table", 4)]
    of_true = small.probabilities[np.arange(47), small.labels]
    np.testing.assert_allclose(probabilities, of_true, atol=5.1e-5)
    answers = ["right" if is_right else "wrong" for is_right in small.probabilities.argmax(1) == small.labels]
    assert _column(opened, "clips-table", 5) == answers


def test_the_findings_are_told_in_words(opened: webdriver.Chrome, small: page.EvaluationReport) -> None:
    learning, scores, sure = (
        image.get_attribute("alt") for image in opened.find_elements(By.TAG_NAME, "img")[:3]
    )
    assert learning == (
        "Kept is epoch 1 of 2, the last whose validation loss is within a standard error of the lowest: "
        "1.250, accuracy 62.5\u00a0%."
    )
    areas = {row["class"]: row["average_precision"] for row in small.metrics["per_class"][:-1]}
    worst, best = min(areas, key=areas.__getitem__), max(areas, key=areas.__getitem__)
    assert scores == (
        f"Average precision is lowest for {worst} ({areas[worst]:.3f}) and highest for {best} "
        f"({areas[best]:.3f})."
    )
    assert sure is not None
    is_sure = small.probabilities.max(axis=1).mean() > small.metrics["accuracy"]
    assert ("surer than it is right" in sure) == is_sure
    named = [text.rsplit(" ", 1) for text in _texts(opened, ".legend li")]
    assert named == [[name, f"{areas[name]:.3f}"] for name in sorted(areas, key=areas.__getitem__)]


_TABLE = """{% extends "base.html.j2" %}{% block main %}
<form class="filter" data-table="t"><label>Find <input type="search"></label>
<label><input type="checkbox" name="odd"> odd</label><output></output></form>
<table class="sortable" id="t" data-rows="4">
<thead><tr><th scope="col">Name</th><th scope="col" class="figures">Number</th></tr></thead><tbody>
{% for name, number in rows %}<tr{% if loop.index is odd %} class="odd"{% endif %}>
<td>{{ name }}</td><td>{{ number }}</td></tr>{% endfor %}</tbody></table>{% endblock %}"""


@pytest.fixture
def table(browser: webdriver.Chrome, tmp_path: Path) -> webdriver.Chrome:
    """A table of five rows, of which four are shown."""
    rows = [("b 10", "9"), ("a", "–"), ("B 9", "10.5 %"), ("é", "-1"), ("a", "9")]
    (tmp_path / "t.html").write_text(page._environment.from_string(_TABLE).render(rows=rows))
    browser.get((tmp_path / "t.html").as_uri())
    return browser


def test_a_table_sorts_by_text_and_by_number(table: webdriver.Chrome) -> None:
    assert _column(table, "t", 0) == ["b 10", "a", "B 9", "é"]
    more = table.find_element(By.CSS_SELECTOR, ".more")
    assert more.text == "Show all 5"
    more.click()
    assert not more.is_displayed()
    for column, direction, expected in [
        (0, "ascending", ["a", "a", "B 9", "b 10", "é"]),
        (0, "descending", ["é", "b 10", "B 9", "a", "a"]),
        (0, "ascending", ["a", "a", "B 9", "b 10", "é"]),
        (1, "ascending", ["-1", "9", "9", "10.5 %", "–"]),
        (1, "descending", ["10.5 %", "9", "9", "-1", "–"]),
    ]:
        assert _press(table, "t", column) == direction
        assert _column(table, "t", column) == expected
        others = table.find_elements(By.CSS_SELECTOR, "#t th[scope=col]")
        assert others[1 - column].get_attribute("aria-sort") == "none"
        if column == 1:  # equal rows, as they came
            names = _column(table, "t", 0)
            assert names.index("b 10") == names.index("a") - 1


def test_a_table_is_filtered_by_words_and_boxes(table: webdriver.Chrome) -> None:
    field, box = table.find_elements(By.TAG_NAME, "input")
    output, more = table.find_element(By.TAG_NAME, "output"), table.find_element(By.CSS_SELECTOR, ".more")
    assert output.text == "5 of 5"
    for typed, expected in [("b", ["b 10", "B 9"]), ("10.5 B", ["B 9"]), ("x", []), ("  a 9 ", ["a"])]:
        field.clear()
        field.send_keys(typed, Keys.ENTER)
        assert _column(table, "t", 0) == expected
        assert output.text == f"{len(expected)} of 5"
        assert not more.is_displayed()
    field.clear()
    box.click()
    assert _column(table, "t", 0) == ["b 10", "B 9", "a"]
    field.send_keys("a")
    assert _column(table, "t", 0) == ["a"]
    assert _press(table, "t", 0) == "ascending"
    assert _column(table, "t", 0) == ["a"]


def test_a_table_is_worked_by_keyboard(table: webdriver.Chrome) -> None:
    body = table.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB, Keys.TAB, Keys.TAB)
    button = table.switch_to.active_element
    assert (button.tag_name, button.text.split()[0]) == ("button", "Name")
    assert button.value_of_css_property("outline-style") == "solid"
    button.send_keys(Keys.ENTER)
    assert _column(table, "t", 0)[0] == "a"
    table.switch_to.active_element.send_keys(Keys.SPACE)
    assert _column(table, "t", 0)[0] == "é"


def test_only_mistakes_can_be_shown(opened: webdriver.Chrome, small: page.EvaluationReport) -> None:
    opened.find_element(By.NAME, "wrong").click()
    wrong = small.probabilities.argmax(axis=1) != small.labels
    assert set(_column(opened, "clips-table", 5)) == {"wrong"}
    assert opened.find_element(By.TAG_NAME, "output").text == f"{wrong.sum()} of 47"


def _places(browser: webdriver.Chrome) -> float:
    """How far the first strip has moved, in frames."""
    script = (
        "const i = document.querySelector('.clip img'), m = new DOMMatrix(getComputedStyle(i).transform);"
    )
    return browser.execute_script(script + "return -m.m41 / i.getBoundingClientRect().width * 5")


def test_clips_play_until_they_are_paused(opened: webdriver.Chrome) -> None:
    script = "return document.querySelector('.clip img').getAnimations()[0].playState"
    button = opened.find_element(By.CSS_SELECTOR, "button.play")
    assert (opened.execute_script(script), button.text) == ("running", "Pause the clips")
    wait = "document.querySelector('.clip img').getAnimations()[0].currentTime = arguments[0]"
    button.click()
    assert (opened.execute_script(script), button.text) == ("paused", "Play the clips")
    for place in range(5):  # the window shows one whole frame at any time
        opened.execute_script(wait, 150 * place + 75)
        assert _places(opened) == pytest.approx(place, abs=1e-3)
    button.send_keys(Keys.SPACE)
    assert opened.execute_script(script) == "running"
    shown, strip = opened.execute_script(
        "const i = document.querySelector('.clip img');"
        "return [i.parentElement, i].map((e) => e.getBoundingClientRect().width)"
    )
    assert strip == pytest.approx(5 * shown)


def test_clips_stand_still_for_those_who_want_less_motion(
    browser: webdriver.Chrome, small_page: Path
) -> None:
    _emulate(browser, prefers_reduced_motion="reduce")
    browser.get(small_page.as_uri())
    script = "return document.querySelector('.clip img').getAnimations()[0].playState"
    assert browser.execute_script(script) == "paused"
    assert browser.find_element(By.CSS_SELECTOR, "button.play").text == "Play the clips"


# How many texts there are; and ratio and text where the contrast with what lies behind is below 4.5 (WCAG 2).
_FAINT = """
const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parse = (c) => {
  const n = c.match(/[\\d.]+/g).map(Number);
  const scale = c.startsWith("color(") ? 255 : 1;
  return [n[0] * scale, n[1] * scale, n[2] * scale, n[3] ?? 1];
};
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
document.querySelectorAll("details").forEach((d) => { d.open = true; });
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const faint = [];
let seen = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  let behind = element;
  while (parse(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const colours = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
  const two = colours.map((colour) => light(parse(colour)));
  const ratio = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
  seen += 1;
  if (ratio < 4.5) faint.push([ratio, walker.currentNode.data]);
}
return [seen, faint];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(browser: webdriver.Chrome, small_page: Path, scheme: str) -> None:
    _emulate(browser, prefers_color_scheme=scheme)
    browser.get(small_page.as_uri())
    seen, faint = browser.execute_script(_FAINT)
    assert seen > 500
    assert faint == []
    paper = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    red, green, blue = bytes.fromhex(report.SCHEMES[scheme]["paper"][1:])
    assert paper.startswith(f"rgba({red}, {green}, {blue}")
    source = browser.execute_script("return document.images[0].currentSrc")
    svg = base64.b64decode(source.partition(",")[2]).decode()
    assert report.SCHEMES[scheme]["card"] in svg


def _lightness(colour: str) -> float:
    channels = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_colours_stand_out(scheme: str) -> None:
    colours = report.SCHEMES[scheme]
    pairs = [
        (4.5, front, behind)
        for behind in ("paper", "card")
        for front in ("ink", "muted", "accent", "good", "bad")
    ]
    pairs += [(4.5, "ink", "cell")] + [(3, f"series-{rank}", "card") for rank in range(8)]
    for least, *names in pairs:
        low, high = sorted(_lightness(colours[name]) for name in names)
        assert (high + 0.05) / (low + 0.05) >= least, names
    assert list(colours) == list(report.SCHEMES["light"])


def test_a_page_is_in_order_for_those_who_cannot_see_it(opened: webdriver.Chrome) -> None:
    assert opened.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    headings = opened.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4")
    levels = [int(heading.tag_name[1]) for heading in headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert opened.find_elements(By.CSS_SELECTOR, "th:not([scope])") == []
    assert opened.execute_script(
        "return [...document.querySelectorAll('.scroll')].every((s) => s.tabIndex === 0 && s.ariaLabel)"
    )
    for field in opened.find_elements(By.TAG_NAME, "input"):
        assert field.accessible_name
    for link in opened.find_elements(By.CSS_SELECTOR, "nav a"):
        target = str(link.get_attribute("href")).partition("#")[2]
        assert opened.find_element(By.ID, target).is_displayed()


@pytest.mark.parametrize("width", [390, 700])
def test_a_narrow_screen_is_not_left_on_its_side(
    browser: webdriver.Chrome, small_page: Path, width: int
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(small_page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_many_classes_and_clips(browser: webdriver.Chrome, large_page: Path) -> None:
    assert large_page.stat().st_size < 6e6
    browser.get(large_page.as_uri())
    assert browser.get_log("browser") == []
    assert browser.find_elements(By.CSS_SELECTOR, ".matrix") == []
    pictures = browser.execute_script("return [...document.images].map((i) => i.naturalWidth)")
    assert len(pictures) == 4 + 24 and min(pictures) > 0
    assert len(_column(browser, "pairs-table", 0)) == 15
    legend = _texts(browser, ".legend li")
    assert len(legend) == 9 and legend[-1] == "92 more"
    assert "left out of means over classes: SomeLongClassName100." in _texts(browser, "header p")[2]
    assert len(_column(browser, "clips-table", 0)) == 200
    assert _press(browser, "clips-table", 3) == "ascending"
    lowest = [float(text) for text in _column(browser, "clips-table", 3)]
    assert len(lowest) == 200 and lowest == sorted(lowest)
    browser.find_element(By.CSS_SELECTOR, "#clips .more").click()
    numbers = [float(text) for text in _column(browser, "clips-table", 3)]
    assert len(numbers) == 4000 and numbers == sorted(numbers) and numbers[:200] == lowest


def _rendered(monkeypatch: pytest.MonkeyPatch, evaluated: page.EvaluationReport, **changes: Any) -> str:
    """The page's text without figures, which take a second."""
    picture = report.Picture(b"<svg/>", b"<svg/>", 1, 1)
    for name in ("learning_curves", "precision_recall", "reliability", "confusion_matrix"):
        monkeypatch.setattr(report, f"{name}_picture", lambda *_: picture)
    return page.evaluation_page(dataclasses.replace(evaluated, **changes))


def test_what_there_is_nothing_to_say_of_is_left_out(
    small: page.EvaluationReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _rendered(monkeypatch, small)
    bare = _rendered(monkeypatch, small, history=[], settings={}, mistakes=[])
    for words, instead in [
        ("Learning curves", ""),
        ("The settings of the run", ""),
        ("The least certain of the others", "The least certain of the clips"),
        ("The most confused pairs", "The most confused pairs"),
    ]:
        assert words in whole
        assert instead in bare
        assert words == instead or words not in bare
    assert "There are none: every clip is named right." in bare
    assert "views" not in whole
    views = _rendered(monkeypatch, small, metrics={**small.metrics, "views": 12})
    assert "Each clip was looked at in 12 views, whose probabilities are averaged." in views
    assert "in the central one of its views" in views
    assert "<code>python tools/evaluate.py --run_dir=&#39;a run&#39;</code>" in whole
    assert '<th scope="row">model.backbone</th><td><code>vgg16</code>' in whole


@pytest.mark.parametrize(
    ("num_right", "num_classes", "tells_top_5", "doubts"),
    [(30, 2, False, False), (17, 2, False, True), (30, 6, True, False)],
)
def test_top_5_and_doubts_where_they_say_something(
    monkeypatch: pytest.MonkeyPatch, num_right: int, num_classes: int, tells_top_5: bool, doubts: bool
) -> None:
    labels = np.arange(30) % 2
    answers = np.where(np.arange(30) < num_right, labels, 1 - labels)
    probabilities = np.full((30, num_classes), 0.1 / (num_classes - 1))
    probabilities[np.arange(30), answers] = 0.9
    names = tuple("abcdef"[:num_classes])
    evaluated = dataclasses.replace(
        _invented(names, 30),
        metrics={"split": "val", "views": 1} | evaluate.compute_metrics(labels, probabilities, names),
        curves=evaluate.precision_recall_curves(labels, probabilities),
        labels=labels,
        probabilities=probabilities,
        history=[HISTORY[0] | {"val_loss": None, "val_accuracy": None}],
    )
    text = _rendered(monkeypatch, evaluated)
    assert ("Top-5 accuracy" in text) == tells_top_5
    assert ("do not show that the model has learned" in text) == doubts
    assert "the last of 1 epochs counts: training loss 2.500, accuracy 20.0\u00a0%." in text


@pytest.mark.parametrize(("num_frames", "side", "shown"), [(1, 48, 48), (5, 112, 112), (23, 224, 112)])
def test_a_strip_is_the_clip_s_frames_side_by_side(num_frames: int, side: int, shown: int) -> None:
    strip = page.strip(brightness_frames(num_frames, side, side))
    image = tf.io.decode_jpeg(strip.jpeg).numpy()
    count = min(num_frames, 20)
    assert (strip.num_frames, strip.height, strip.width) == (count, shown, shown)
    assert image.shape == (shown, count * shown, 3)
    expected = np.linspace(0, num_frames - 1, count).round().astype(int).tolist()
    assert frame_indices_of(np.stack(np.split(image, count, axis=1))) == expected


def test_a_strip_keeps_the_frames_shape() -> None:
    strip = page.strip(brightness_frames(2, 448, 224))
    assert (strip.height, strip.width) == (112, 56)
    assert tf.io.decode_jpeg(strip.jpeg).shape == (112, 112, 3)

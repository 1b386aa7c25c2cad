"""The report of an evaluation by its values, and in a real browser."""

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
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from synthetic import LOW_CONTRAST, brightness_frames
from vidpipe.display import figures
from vidpipe.display.colours import SCHEMES
from vidpipe.evaluation.evaluate import clips_to_show
from vidpipe.evaluation.metrics import compute_metrics, linear_baseline, precision_recall_curves
from vidpipe.evaluation.report import EvaluationReport, evaluation_page

HOSTILE = (
    "<script>alert(1)</script>", "$\\frac{1}{0}$", "\"quotes\" & 'more'", "跳水 Ünï", "_x", "{{ 7 * 7 }}",
)  # fmt: skip
HISTORY: list[dict[str, Any]] = [
    {
        "epoch": 1, "loss": 2.5, "accuracy": 0.2, "val_loss": 1.25, "val_loss_error": 0.25,
        "val_accuracy": 0.625, "learning_rate": 1e-3,
    },
    {
        "epoch": 2, "loss": 1.5, "accuracy": 0.7, "val_loss": 1.625, "val_loss_error": 0.5,
        "val_accuracy": 0.75, "learning_rate": 5e-4,
    },
]  # fmt: skip


def _measured(
    labels: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...], temporal_crops: int = 1
) -> dict[str, Any]:
    of_evaluation = {"split": "test", "temporal_crops": temporal_crops, "spatial_crops": 1}
    linear_part = linear_baseline(labels, probabilities, np.roll(probabilities, 1, axis=0))
    return of_evaluation | compute_metrics(labels, probabilities, classes) | {"linear_part": linear_part}


def _make_report(classes: tuple[str, ...], num_clips: int, absent: int = 0) -> EvaluationReport:
    """Makes a report of random probabilities, often correct; the last `absent` classes have no clips."""
    random = np.random.default_rng(len(classes))
    labels = np.arange(num_clips) % (len(classes) - absent)
    scores = random.gamma(0.3, size=(num_clips, len(classes)))
    scores[np.arange(num_clips), labels] += random.gamma(2, size=num_clips)
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    mistakes, uncertain = clips_to_show(labels, probabilities, 12)
    return EvaluationReport(
        name="a run & more",
        metrics=_measured(labels, probabilities, classes),
        video_ids=[f"of {classes[label]}/{index}.avi" for index, label in enumerate(labels)],
        labels=labels,
        probabilities=probabilities,
        curves=precision_recall_curves(labels, probabilities),
        mistakes=mistakes,
        uncertain=uncertain,
        frames=dict.fromkeys([*mistakes, *uncertain], brightness_frames(5, 48, 48)),
        history=HISTORY,
        settings={"epochs": 2, "model": {"backbone": "vgg16", "dropout": None}},
        provenance={
            "Command": "python tools/evaluate.py --run_dir='a run'",
            "Date": "2026-11-23 20:00+00:00",
        },
    )


@pytest.fixture(scope="module")
def small() -> EvaluationReport:
    return _make_report(HOSTILE, 47, absent=1)


@pytest.fixture(scope="module")
def small_page(small: EvaluationReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "report.html"
    path.write_text(evaluation_page(small), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: webdriver.Chrome, small_page: Path) -> webdriver.Chrome:
    browser.get(small_page.as_uri())
    return browser


def _emulate(browser: webdriver.Chrome, **features: str) -> None:
    named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})


def _column(browser: webdriver.Chrome, table: str, column: int) -> list[str]:
    """Returns a column of the rows that a table shows."""
    script = "const rows = [...document.getElementById(arguments[0]).tBodies[0].rows];"
    script += "return rows.map((row) => row.cells[arguments[1]].textContent)"
    return browser.execute_script(script, table, column)


def _texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def test_the_policy_allows_no_requests_and_no_other_script(small_page: Path) -> None:
    text = small_page.read_text(encoding="utf-8")
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*)">', text)
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'"
    )
    assert not re.findall(r'(?:src|href|srcset)="(?!data:|#)', text)


@pytest.mark.browser
def test_a_page_makes_no_requests_and_shows_its_images(opened: webdriver.Chrome, small_page: Path) -> None:
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [found["params"]["request"]["url"] for found in messages if found["method"].endswith("BeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [small_page.as_uri()]
    images = opened.execute_script("return [...document.images].map((i) => [i.naturalWidth, i.alt])")
    assert len(images) == 3 + len(opened.find_elements(By.CSS_SELECTOR, "#examples li")) > 15
    assert all(width > 0 and description for width, description in images)


@pytest.mark.browser
def test_names_are_shown_as_they_are(opened: webdriver.Chrome, small: EvaluationReport) -> None:
    assert opened.execute_script("return document.scripts.length") == 1
    assert opened.title == f"a run & more on test: {100 * small.metrics['accuracy']:.1f}\u00a0%"
    assert _column(opened, "classes-table", 0) == list(HOSTILE)
    assert _column(opened, "clips-table", 0) == small.video_ids
    assert _texts(opened, ".matrix tbody th") == list(HOSTILE)
    shown = [*small.mistakes, *small.uncertain]
    assert _texts(opened, "#examples p.small") == [small.video_ids[index] for index in shown]
    predicted = [HOSTILE[small.probabilities[index].argmax()] for index in shown]
    assert _texts(opened, "#examples p:first-of-type strong") == predicted
    compared = []  # the true class, or the second one where the true one is predicted
    for index in shown:
        best, second = np.argsort(-small.probabilities[index])[:2]
        label = small.labels[index]
        name, other = ("Second choice", second) if best == label else ("True class", label)
        compared.append(f"{name}\n{HOSTILE[other]} {100 * small.probabilities[index, other]:.1f} %")
    assert _texts(opened, "#examples p:nth-of-type(2)") == compared


@pytest.mark.browser
def test_the_numbers_are_those_of_the_metrics(opened: webdriver.Chrome, small: EvaluationReport) -> None:
    metrics = small.metrics
    values = dict(zip(_texts(opened, "dt"), _texts(opened, ".number dd:first-of-type"), strict=False))
    for name, key in (("Accuracy", "accuracy"), ("Mean class accuracy", "mean_class_accuracy")):
        assert values[name] == f"{100 * metrics[key]:.1f} %"
    assert values["Top-5 accuracy"] == f"{100 * metrics['top_5_accuracy']:.1f} %"
    assert values["Majority class baseline"] == f"{1000 / 47:.1f} %"
    for name, key in (("Loss", "loss"), ("Mean average precision", "mean_average_precision")):
        assert values[name] == f"{metrics[key]:.3f}"
    assert values["Calibration error"] == f"{metrics['calibration_error']:.3f}"
    assert values["Linear part alone"] == f"{100 * metrics['linear_part']['accuracy']:.1f} %"
    low, high = (f"{100 * bound:.1f} %" for bound in metrics["accuracy_ci95"])
    num_correct = np.trace(metrics["confusion_matrix"])
    notes = _texts(opened, ".number dd.muted")
    assert notes[0] == f"{num_correct} of 47 clips; 95 % interval {low} to {high}"
    assert notes[1].startswith("mean over 5 classes; 95 % interval ")
    cells = [[int(cell) for cell in _column(opened, "matrix-table", index + 1)] for index in range(6)]
    assert np.transpose(cells).tolist() == metrics["confusion_matrix"]
    assert _column(opened, "classes-table", 6)[-1] == "–"
    probabilities = [float(text) for text in _column(opened, "clips-table", 4)]
    of_true = small.probabilities[np.arange(47), small.labels]
    np.testing.assert_allclose(probabilities, of_true, atol=5.1e-5)
    is_correct = small.probabilities.argmax(axis=1) == small.labels
    assert _column(opened, "clips-table", 5) == ["correct" if each else "wrong" for each in is_correct]


@pytest.mark.browser
def test_captions_state_what_the_figures_show(opened: webdriver.Chrome, small: EvaluationReport) -> None:
    learning, curves, calibration = (
        str(image.get_attribute("alt")) for image in opened.find_elements(By.TAG_NAME, "img")[:3]
    )
    assert learning == (
        "Epoch 1 of 2 was selected, the last whose loss in validation is within one standard error of the "
        "lowest: loss 1.250, accuracy 62.5\u00a0%."
    )
    areas = {row["class"]: row["average_precision"] for row in small.metrics["per_class"][:-1]}
    worst, best = min(areas, key=areas.__getitem__), max(areas, key=areas.__getitem__)
    assert curves == (
        f"Average precision is lowest for {worst} ({areas[worst]:.3f}) and highest for {best} "
        f"({areas[best]:.3f})."
    )
    confidence, accuracy = small.probabilities.max(axis=1).mean(), small.metrics["accuracy"]
    tendency = "over-confident" if confidence > accuracy else "under-confident"
    assert calibration.startswith(
        f"On average the model is {tendency}: mean confidence {100 * confidence:.1f}"
    )
    named = [text.rsplit(" ", 1) for text in _texts(opened, ".legend li")]
    assert named == [[name, f"{areas[name]:.3f}"] for name in sorted(areas, key=areas.__getitem__)]


@pytest.mark.browser
def test_mistakes_only(opened: webdriver.Chrome, small: EvaluationReport) -> None:
    opened.find_element(By.NAME, "wrong").click()
    is_wrong = small.probabilities.argmax(axis=1) != small.labels
    assert set(_column(opened, "clips-table", 5)) == {"wrong"}
    assert opened.find_element(By.TAG_NAME, "output").text == f"{is_wrong.sum()} of 47 rows"


def _strip_position(browser: webdriver.Chrome) -> float:
    """Returns how far the first strip has moved, in frames."""
    script = (
        "const i = document.querySelector('.clip img'), m = new DOMMatrix(getComputedStyle(i).transform);"
    )
    return browser.execute_script(script + "return -m.m41 / i.getBoundingClientRect().width * 5")


@pytest.mark.browser
def test_clips_play_until_they_are_paused(opened: webdriver.Chrome) -> None:
    script = "return document.querySelector('.clip img').getAnimations()[0].playState"
    button = opened.find_element(By.CSS_SELECTOR, "button.play")
    assert (opened.execute_script(script), button.text) == ("running", "Pause the clips")
    set_time = "document.querySelector('.clip img').getAnimations()[0].currentTime = arguments[0]"
    button.click()
    assert (opened.execute_script(script), button.text) == ("paused", "Play the clips")
    for frame in range(5):  # the window shows exactly one frame at any time
        opened.execute_script(set_time, 150 * frame + 75)
        assert _strip_position(opened) == pytest.approx(frame, abs=1e-3)
    button.send_keys(Keys.SPACE)
    assert opened.execute_script(script) == "running"
    window, strip = opened.execute_script(
        "const i = document.querySelector('.clip img');"
        "return [i.parentElement, i].map((e) => e.getBoundingClientRect().width)"
    )
    assert strip == pytest.approx(5 * window)


@pytest.mark.browser
def test_clips_do_not_play_for_readers_who_prefer_reduced_motion(
    browser: webdriver.Chrome, small_page: Path
) -> None:
    _emulate(browser, prefers_reduced_motion="reduce")
    browser.get(small_page.as_uri())
    script = "return document.querySelector('.clip img').getAnimations()[0].playState"
    assert browser.execute_script(script) == "paused"
    assert browser.find_element(By.CSS_SELECTOR, "button.play").text == "Play the clips"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser: webdriver.Chrome, small_page: Path, scheme: str) -> None:
    _emulate(browser, prefers_color_scheme=scheme)
    browser.get(small_page.as_uri())
    count, low = browser.execute_script(LOW_CONTRAST)
    assert count > 500
    assert low == []
    paper = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    red, green, blue = bytes.fromhex(SCHEMES[scheme]["paper"][1:])
    assert paper.startswith(f"rgba({red}, {green}, {blue}")
    source = browser.execute_script("return document.images[0].currentSrc")
    svg = base64.b64decode(source.partition(",")[2]).decode()
    assert SCHEMES[scheme]["card"] in svg


@pytest.mark.browser
def test_a_page_is_accessible(opened: webdriver.Chrome) -> None:
    """Language, order of headings, scopes of headers, scrollable regions, names of fields, links."""
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
    links = opened.find_elements(By.CSS_SELECTOR, "nav a")
    assert len(links) == len(opened.find_elements(By.TAG_NAME, "section")) == 8
    for link in links:
        target = str(link.get_attribute("href")).partition("#")[2]
        assert opened.find_element(By.ID, target).is_displayed()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 700])
def test_a_narrow_screen_needs_no_horizontal_scrolling(
    browser: webdriver.Chrome, small_page: Path, width: int
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(small_page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


@pytest.mark.browser
def test_many_classes_and_clips(browser: webdriver.Chrome, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    classes = tuple(f"SomeLongClassName{index:03d}" for index in range(101))
    path.write_text(evaluation_page(_make_report(classes, 4000, absent=1)), encoding="utf-8")
    assert path.stat().st_size < 6e6
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    assert browser.find_elements(By.CSS_SELECTOR, ".matrix") == []
    widths = browser.execute_script("return [...document.images].map((i) => i.naturalWidth)")
    assert len(widths) == 4 + 24 and min(widths) > 0
    assert len(_column(browser, "pairs-table", 0)) == 15
    legend = _texts(browser, ".legend li")
    assert len(legend) == 9 and legend[-1] == "92 more classes"
    assert "left out of means over classes: SomeLongClassName100." in _texts(browser, "header p")[2]
    assert len(_column(browser, "clips-table", 0)) == 200
    browser.find_elements(By.CSS_SELECTOR, "#clips-table th button")[3].click()
    lowest = [float(text) for text in _column(browser, "clips-table", 3)]
    assert len(lowest) == 200 and lowest == sorted(lowest)
    browser.find_element(By.CSS_SELECTOR, "#clips .more").click()
    numbers = [float(text) for text in _column(browser, "clips-table", 3)]
    assert len(numbers) == 4000 and numbers == sorted(numbers) and numbers[:200] == lowest


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second; these are empty."""
    picture = figures.Picture(b"<svg/>", b"<svg/>", 1, 1)
    for name in ("learning_curves", "precision_recall", "reliability", "confusion_matrix"):
        monkeypatch.setattr(figures, f"{name}_picture", lambda *_: picture)


@pytest.mark.usefixtures("no_figures")
def test_parts_without_content_are_left_out(small: EvaluationReport) -> None:
    complete = evaluation_page(small)
    bare = evaluation_page(dataclasses.replace(small, history=[], settings={}, mistakes=[]))
    for words, instead in [
        ("Learning curves", ""),
        ("Settings of the run", ""),
        ("Least confident of the other clips", "Least confident clips"),
    ]:
        assert words in complete
        assert instead in bare
        assert words not in bare
    assert "Most confused pairs" in complete
    assert "Most confused pairs" in bare
    assert "There are none: every clip is classified correctly." in bare
    assert "<code>python tools/evaluate.py --run_dir=&#39;a run&#39;</code>" in complete
    assert '<th scope="row">model.backbone</th><td><code>vgg16</code>' in complete


@pytest.mark.usefixtures("no_figures")
def test_test_time_augmentation_is_reported(small: EvaluationReport) -> None:
    assert "crop" not in evaluation_page(small)
    metrics = {**small.metrics, "temporal_crops": 4, "spatial_crops": 3}
    augmented = evaluation_page(dataclasses.replace(small, metrics=metrics))
    assert "the probabilities of 4 temporal × 3 spatial crops per video are averaged." in augmented
    assert "The frames that the model received in the central crop." in augmented


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("num_correct", "num_classes", "has_top_5", "has_warning"),
    [(30, 2, False, False), (17, 2, False, True), (30, 6, True, False)],
)
def test_top_5_and_a_warning_where_they_are_informative(
    num_correct: int, num_classes: int, has_top_5: bool, has_warning: bool
) -> None:
    labels = np.arange(30) % 2
    predicted = np.where(np.arange(30) < num_correct, labels, 1 - labels)
    probabilities = np.full((30, num_classes), 0.1 / (num_classes - 1))
    probabilities[np.arange(30), predicted] = 0.9
    names = tuple("abcdef"[:num_classes])
    report = dataclasses.replace(
        _make_report(names, 30),
        metrics=_measured(labels, probabilities, names),
        curves=precision_recall_curves(labels, probabilities),
        labels=labels,
        probabilities=probabilities,
        history=[HISTORY[0] | {"val_loss": None, "val_accuracy": None}],
    )
    text = evaluation_page(report)
    assert ("Top-5 accuracy" in text) == has_top_5
    assert ("do not show that the model has learned" in text) == has_warning
    assert "the last of 1 epochs was selected: training loss 2.500, accuracy 20.0\u00a0%." in text


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("confidence", "tendency"),
    [(0.9, "over-confident"), (0.6, "under-confident"), (0.75, "neither over-confident nor under-confident")],
)
def test_over_and_under_confidence(small: EvaluationReport, confidence: float, tendency: str) -> None:
    """Three of four clips are correct."""
    labels = np.array([0, 0, 0, 1])
    probabilities = np.tile([confidence, 1 - confidence], (4, 1))
    report = dataclasses.replace(
        small,
        metrics=_measured(labels, probabilities, ("a", "b")),
        curves=precision_recall_curves(labels, probabilities),
        labels=labels,
        probabilities=probabilities,
        mistakes=[],
        uncertain=[],
    )
    assert f"On average the model is {tendency}: mean confidence " in evaluation_page(report)


def test_the_epoch_of_a_cross_fitted_run_is_explained() -> None:
    of_epochs = [
        {"cv_loss": 0.5, "cv_loss_error": 0.125, "cv_accuracy": 0.75},
        {"cv_loss": 0.25, "cv_loss_error": 0.125, "cv_accuracy": 0.875},
    ]
    history = [
        row | crossed | {"linear_cv_accuracy": 0.625} for row, crossed in zip(HISTORY, of_epochs, strict=True)
    ]
    page = evaluation_page(dataclasses.replace(_make_report(("a", "b"), 12), history=history))
    assert (
        "Epoch 2 of 2 was selected, the last whose loss in cross-validation is within one standard error of "
        "the lowest: loss 0.250, accuracy 87.5\u00a0%; its linear part alone 62.5\u00a0%."
    ) in page

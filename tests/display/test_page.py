"""The base of all pages, in a real browser: tables that sort and filter; colours; strips of frames."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from jinja2 import UndefinedError
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from synthetic import brightness_frames, frame_indices_of
from vidpipe.display import page
from vidpipe.display.colours import SCHEMES

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


def _column(browser: webdriver.Chrome, column: int) -> list[str]:
    script = "const rows = [...document.getElementById('t').tBodies[0].rows];"
    return browser.execute_script(
        script + "return rows.map((row) => row.cells[arguments[0]].textContent)", column
    )


def _press(browser: webdriver.Chrome, column: int) -> str:
    """Presses a header's button; returns how the column is sorted then."""
    header = browser.find_elements(By.CSS_SELECTOR, "#t th[scope=col]")[column]
    header.find_element(By.TAG_NAME, "button").click()
    return str(header.get_attribute("aria-sort"))


@pytest.mark.browser
def test_a_table_sorts_by_text_and_by_number(table: webdriver.Chrome) -> None:
    assert _column(table, 0) == ["b 10", "a", "B 9", "é"]
    more = table.find_element(By.CSS_SELECTOR, ".more")
    assert more.text == "Show all 5 rows"
    more.click()
    assert not more.is_displayed()
    for column, direction, expected in [
        (0, "ascending", ["a", "a", "B 9", "b 10", "é"]),
        (0, "descending", ["é", "b 10", "B 9", "a", "a"]),
        (0, "ascending", ["a", "a", "B 9", "b 10", "é"]),
        (1, "ascending", ["-1", "9", "9", "10.5 %", "–"]),
        (1, "descending", ["10.5 %", "9", "9", "-1", "–"]),
    ]:
        assert _press(table, column) == direction
        assert _column(table, column) == expected
        others = table.find_elements(By.CSS_SELECTOR, "#t th[scope=col]")
        assert others[1 - column].get_attribute("aria-sort") == "none"
        if column == 1:  # equal rows keep their order
            names = _column(table, 0)
            assert names.index("b 10") == names.index("a") - 1


@pytest.mark.browser
def test_a_table_is_filtered_by_words_and_checkboxes(table: webdriver.Chrome) -> None:
    field, box = table.find_elements(By.TAG_NAME, "input")
    output, more = table.find_element(By.TAG_NAME, "output"), table.find_element(By.CSS_SELECTOR, ".more")
    assert output.text == "5 of 5 rows"
    for typed, expected in [("b", ["b 10", "B 9"]), ("10.5 B", ["B 9"]), ("x", []), ("  a 9 ", ["a"])]:
        field.clear()
        field.send_keys(typed, Keys.ENTER)
        assert _column(table, 0) == expected
        assert output.text == f"{len(expected)} of 5 rows"
        assert not more.is_displayed()
    field.clear()
    box.click()
    assert _column(table, 0) == ["b 10", "B 9", "a"]
    field.send_keys("a")
    assert _column(table, 0) == ["a"]
    assert _press(table, 0) == "ascending"
    assert _column(table, 0) == ["a"]


@pytest.mark.browser
def test_a_table_works_with_the_keyboard(table: webdriver.Chrome) -> None:
    body = table.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB, Keys.TAB, Keys.TAB)
    button = table.switch_to.active_element
    assert (button.tag_name, button.text.split()[0]) == ("button", "Name")
    assert button.value_of_css_property("outline-style") == "solid"
    button.send_keys(Keys.ENTER)
    assert _column(table, 0)[0] == "a"
    table.switch_to.active_element.send_keys(Keys.SPACE)
    assert _column(table, 0)[0] == "é"


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="comparison"):
        page.render("compare.html.j2", notes=[])


@pytest.mark.parametrize(("fraction", "text"), [(0.625, "62.5\u00a0%"), (1, "100.0\u00a0%"), (None, "–")])
def test_percent(fraction: float | None, text: str) -> None:
    assert page.percent(fraction) == text


def _luminance(colour: str) -> float:
    channels = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_colours_have_enough_contrast(scheme: str) -> None:
    """Contrast ratios of WCAG 2: 4.5 for text, 3 for lines."""
    colours = SCHEMES[scheme]
    pairs = [
        (4.5, front, behind)
        for behind in ("paper", "card")
        for front in ("ink", "muted", "accent", "good", "bad")
    ]
    pairs += [(4.5, "ink", "cell")] + [(3, f"series-{rank}", "card") for rank in range(8)]
    for least, *names in pairs:
        low, high = sorted(_luminance(colours[name]) for name in names)
        assert (high + 0.05) / (low + 0.05) >= least, names
    assert list(colours) == list(SCHEMES["light"])


@pytest.mark.parametrize(("num_frames", "side", "shown"), [(1, 48, 48), (5, 112, 112), (23, 224, 112)])
def test_a_strip_is_the_clip_s_frames_side_by_side(num_frames: int, side: int, shown: int) -> None:
    strip = page.strip(brightness_frames(num_frames, side, side))
    image = tf.io.decode_jpeg(strip.jpeg).numpy()
    count = min(num_frames, 20)
    assert (strip.num_frames, strip.height, strip.width) == (count, shown, shown)
    assert image.shape == (shown, count * shown, 3)
    expected = np.linspace(0, num_frames - 1, count).round().astype(int).tolist()
    assert frame_indices_of(np.stack(np.split(image, count, axis=1))) == expected


def test_a_strip_keeps_the_shape_of_frames() -> None:
    strip = page.strip(brightness_frames(2, 448, 224))
    assert (strip.height, strip.width) == (112, 56)
    assert tf.io.decode_jpeg(strip.jpeg).shape == (112, 112, 3)

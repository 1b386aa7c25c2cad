"""A comparison as text, as a CSV file, as a page in a browser, and from the command line."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tools import compare_runs as tool
from vidpipe.evaluation import comparison_report
from vidpipe.evaluation.compare import CompareError, compare

VIDEO_IDS = [f"clip_{number}.avi" for number in range(10)]  # as `save_run` writes them


@pytest.fixture
def written(save_run: Callable[..., str]) -> Path:
    """The page of three runs; one has a name that needs escaping."""
    save_run("one", "++++++++--")
    save_run("runs/<b>two</b>", "------+++-", head="notebook")
    save_run("three", "++++++++-+", seed=2)
    comparison = compare(["one", "runs/<b>two</b>", "three"], split="test")
    return comparison_report.write(comparison, "new/compared")


def test_two_runs_as_text(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    save_run("two", "------+++-", head="notebook")
    lines = comparison_report.text(compare(["one", "two"], split="test")).splitlines()
    assert lines[:10] == [
        "Accuracy on the test split, 10 clips:",
        "",
        "run  accuracy   95 % interval   loss  differs in",
        "one     80.0%  49.0% to 94.3%  0.500  model.head=motion",
        "two     30.0%  10.8% to 60.3%  1.194  model.head=notebook",
        "",
        "Differences to the baseline one on the same clips, in percentage points:",
        "",
        "run  difference  95 % interval  only run correct  only baseline correct  p (McNemar)",
        "two       -50.0  -76.4 to -2.2                 1                      6        0.125",
    ]
    assert "The runs disagree on 7 of 10 clips." in lines
    assert max(map(len, lines)) <= 110


def test_methods_as_text(save_run: Callable[..., str]) -> None:
    for name, correct, seed in (("m1", "++++++++--", 1), ("m2", "++++++----", 2), ("m3", "+++++++---", 3)):
        save_run(name, correct, seed=seed)
    save_run("n1", "++++------", head="notebook")
    printed = comparison_report.text(compare(["m1", "m2", "m3", "n1"], split="test"))
    assert "\nmodel.head=motion       3  70.0%  60.0%  80.0%  10.0%\n" in printed
    assert "differences to the mean of model.head=motion:\n" in printed
    assert "p (Holm)" in printed
    notes = " ".join(printed.split())
    assert "from 9,999 bootstrap samples of the clips" in notes
    assert "the standard deviation (std) shows it" in notes


def test_equal_runs_as_text(save_run: Callable[..., str]) -> None:
    for name in ("one", "two"):
        save_run(name, "++++++++--")
    printed = comparison_report.text(compare(["one", "two"], split="test"))
    assert "\none     80.0%  49.0% to 94.3%  0.500  nothing\n" in printed
    assert "\nall runs     2  80.0%  80.0%  80.0%  0.0%\n" in printed
    assert "\nThe runs disagree on 0 of 10 clips.\n" in printed


def test_clips_with_different_predictions_are_written(save_run: Callable[..., str], written: Path) -> None:
    assert written == Path("new/compared/comparison.html")
    with (written.parent / "differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video_id"] for row in rows] == [*VIDEO_IDS[:6], *VIDEO_IDS[8:]]
    assert rows[0] == {
        "video_id": VIDEO_IDS[0], "label": "a",
        "predicted(one)": "a", "predicted(runs/<b>two</b>)": "b", "predicted(three)": "a",
    }  # fmt: skip
    assert rows[-1] == {
        "video_id": VIDEO_IDS[9], "label": "b",
        "predicted(one)": "a", "predicted(runs/<b>two</b>)": "a", "predicted(three)": "b",
    }  # fmt: skip
    assert sorted(path.name for path in written.parent.iterdir()) == ["comparison.html", "differences.csv"]


def test_a_folder_that_cannot_be_written_is_named(save_run: Callable[..., str]) -> None:
    for name in ("one", "two"):
        save_run(name, "++++++++--")
    Path("file").write_text("")
    with pytest.raises(CompareError, match="Cannot write to file/x .*Choose another --output_dir"):
        comparison_report.write(compare(["one", "two"], split="test"), "file/x")


def _column(browser: webdriver.Chrome, table: str, column: int) -> list[str]:
    script = "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map("
    return browser.execute_script(script + "row => row.cells[arguments[1]].innerText)", table, column)


@pytest.mark.browser
def test_the_page_sorts_and_filters(written: Path, browser: webdriver.Chrome) -> None:
    browser.get(written.absolute().as_uri())
    assert _column(browser, "runs-table", 0) == ["one", "runs/<b>two</b>", "three"]
    assert _column(browser, "pairs-table", 1) == ["-50.0", "+10.0"]
    assert _column(browser, "methods-table", 1) == ["2", "1"]
    assert len(_column(browser, "clips-table", 0)) == 8

    headers = browser.find_elements(By.CSS_SELECTOR, "#pairs-table thead button")
    headers[1].click()
    headers[1].click()
    assert _column(browser, "pairs-table", 1) == ["+10.0", "-50.0"]

    def tick(*names: str) -> list[str]:
        for box in browser.find_elements(By.CSS_SELECTOR, "form.filter input[type=checkbox]"):
            if box.is_selected() != (box.get_attribute("name") in names):
                box.click()
        return _column(browser, "clips-table", 0)

    assert tick("wrong-0", "correct-1") == ["clip_8.avi"]
    assert tick("wrong-0") == ["clip_8.avi", "clip_9.avi"]
    assert tick("correct-2", "wrong-1") == [*VIDEO_IDS[:6], VIDEO_IDS[9]]
    assert tick("correct-0", "wrong-0") == []
    browser.find_element(By.CSS_SELECTOR, "form.filter input[type=search]").send_keys("clip_4")
    assert tick() == ["clip_4.avi"]
    wrong = browser.execute_script("return [...document.querySelectorAll('td.wrong')].map(c => c.cellIndex)")
    assert wrong == [3]
    assert browser.get_log("browser") == []


def test_the_tool_prints_and_writes(save_run: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    save_run("one", "++++++++--")
    save_run("two", "------+++-")
    assert tool.run(["compare_runs.py", "one", "two", "--baseline=two", "--output_dir=out"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Differences to the baseline two on the same clips" in printed.out
    assert "\nThe runs disagree on 7 of 10 clips.\n" in printed.out
    assert printed.out.endswith("\nReport: out/comparison.html\n")
    assert Path("out/differences.csv").exists()


def test_the_tool_needs_two_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.run(["compare_runs.py", "one"]) == 2
    assert capsys.readouterr().err == "compare_runs.py: give at least two runs. --help lists the flags.\n"

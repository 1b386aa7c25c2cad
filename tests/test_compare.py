"""Comparisons by hand and by published figures, refusals by name, and the page in a browser."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from test_tools import run_tool
from vidpipe import compare
from vidpipe.config import ModelConfig, TrainConfig, to_dict
from vidpipe.evaluate import compute_metrics

CLASSES = ("a", "b")
# Ten clips; all are of class a but the last.
VIDEO_IDS = [f"clip_{number}.avi" for number in range(10)]
LABELS = [*"aaaaaaaaab"]


@pytest.fixture
def save_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes an evaluated run into the working folder: which of the ten clips it names right."""
    monkeypatch.chdir(tmp_path)

    def save(
        name: str,
        right: str,
        seed: int = 1,
        labels: Sequence[str] = LABELS,
        video_ids: Sequence[str] = VIDEO_IDS,
        head: str = "motion",
        **changes: object,
    ) -> str:
        config = TrainConfig("/data", name, ModelConfig(head=head), seed=seed)
        settings = to_dict(config) | {"dataset": "1f2e", "start_weights": None} | changes
        folder = Path(name) / "eval_test"
        folder.mkdir(parents=True)
        (Path(name) / "config.json").write_text(json.dumps(settings))
        indices = np.array([CLASSES.index(label) for label in labels])
        predicted = np.where(np.array([*right]) == "+", indices, 1 - indices)
        probabilities = np.eye(2)[predicted] * 0.6 + 0.2
        metrics = {"split": "test", "views": 1} | compute_metrics(indices, probabilities, CLASSES)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["video_id", "label", "predicted", *CLASSES])
            for video_id, label, place, row in zip(video_ids, labels, predicted, probabilities, strict=True):
                writer.writerow([video_id, label, CLASSES[place], *row])
        return name

    return save


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (6, 1, 2 * (1 + 7) / 2**7),
        (1, 6, 0.125),
        (5, 0, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (4, 4, 1.0),
        (0, 0, 1.0),
        (30, 15, 2 * sum(math.comb(45, k) for k in range(16)) / 2**45),
    ],
)
def test_mcnemar_is_twice_the_tail_of_the_binomial(
    only_first: int, only_second: int, expected: float
) -> None:
    assert compare.mcnemar(only_first, only_second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.04], [0.5, 0.08]),
        ([0.9, 0.6], [1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], expected: list[float]) -> None:
    assert compare.holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, table II
        ((2, 6, 1, 1), (0.0215, 0.7636)),  # by hand: a negative correlation, which is not corrected
        ((30, 0, 0, 20), (-0.0404, 0.0404)),
        ((10, 0, 0, 0), (-0.2775, 0.2775)),  # no correlation can be had
    ],
)
def test_paired_interval(table: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    assert compare.paired_interval(*table) == pytest.approx(expected, abs=1e-4)
    both, only_first, only_second, neither = table
    low, high = compare.paired_interval(both, only_second, only_first, neither)
    assert (-high, -low) == pytest.approx(expected, abs=1e-4)


def test_the_bootstrap_draws_clips_in_pairs() -> None:
    """Where the clips are many it is the normal distribution's interval of the paired difference."""
    random = np.random.default_rng(0)
    second = random.integers(0, 4, 2000) / 3
    first = np.where(random.random(2000) < 0.1, 1 - second, second)
    difference = first - second
    reach = 1.96 * difference.std(ddof=1) / math.sqrt(2000)
    interval = compare.bootstrap_interval(first, second)
    assert interval == pytest.approx((difference.mean() - reach, difference.mean() + reach), abs=0.05 * reach)
    assert interval == compare.bootstrap_interval(first, second)
    assert compare.bootstrap_interval(second + 0.25, second) == (0.25, 0.25)


def test_two_runs_by_hand(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    save_run("two", "------+++-", head="notebook")
    comparison = compare.compare(["one/", "two"], "test")
    (pair,) = comparison.pairs
    assert (pair.run, pair.only_run, pair.only_baseline, pair.p_value) == ("two", 1, 6, 0.125)
    assert pair.difference == pytest.approx(-0.5)
    assert pair.interval == pytest.approx((-0.7636, -0.0215), abs=1e-4)
    assert pair.p_holm == pair.p_value
    assert comparison.differs_in == ("model.head=motion", "model.head=notebook")
    assert comparison.methods == ()
    assert comparison.differing == tuple(VIDEO_IDS[:6] + VIDEO_IDS[8:9])

    (turned,) = compare.compare(["one", "two"], "test", baseline="two").pairs
    assert (turned.run, turned.only_run, turned.only_baseline) == ("one", 6, 1)
    assert turned.difference == pytest.approx(0.5)
    assert compare.text(comparison).splitlines()[:9] == [
        "Runs on test, 10 clips:",
        "",
        "run  accuracy   95 % interval   loss  differs in",
        "one     80.0%  49.0% to 94.3%  0.500  model.head=motion",
        "two     30.0%  10.8% to 60.3%  1.194  model.head=notebook",
        "",
        "Against one, clip by clip, in percentage points:",
        "",
        "run  difference  95 % interval  only it right  only the other  p (McNemar)",
    ]


def test_the_order_of_the_clips_does_not_matter(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    save_run("two", "--++++++++"[::-1], video_ids=VIDEO_IDS[::-1], labels=LABELS[::-1])
    (pair,) = compare.compare(["one", "two"], "test").pairs
    assert (pair.only_run, pair.only_baseline) == (2, 2)


def test_runs_that_differ_only_in_the_seed_are_one_method(save_run: Callable[..., str]) -> None:
    save_run("m1", "++++++++--", seed=1)
    save_run("m2", "++++++----", seed=2, data_dir="/elsewhere", cache_features="off")
    save_run("m3", "+++++++---", seed=3)
    save_run("n1", "++++------", seed=1, head="notebook")
    save_run("n2", "++--++----", seed=2, head="notebook")
    comparison = compare.compare(["n1", "m1", "m2", "n2", "m3"], "test", baseline="m1")
    motion, notebook = comparison.methods
    assert (motion.name, motion.runs) == ("model.head=motion", ("m1", "m2", "m3"))
    assert (notebook.name, notebook.runs) == ("model.head=notebook", ("n1", "n2"))
    assert motion.accuracies == (0.8, 0.6, 0.7)
    assert (motion.mean, motion.deviation) == (pytest.approx(0.7), pytest.approx(0.1))
    assert (motion.difference, motion.interval) == (None, None)
    assert notebook.difference == pytest.approx(-0.3)
    shares = (np.array([2, 2, 1, 1, 1, 1, 0, 0, 0, 0]) / 2, np.array([3, 3, 3, 3, 3, 3, 2, 1, 0, 0]) / 3)
    assert notebook.interval == compare.bootstrap_interval(*shares)
    assert comparison.differs_in[:2] == ("model.head=motion, seed=1", "model.head=notebook, seed=1")
    # 4, 2, 4, 1 clips, all on one side: half as likely with each more.
    assert [pair.p_value for pair in comparison.pairs] == pytest.approx([1 / 8, 1 / 2, 1 / 8, 1])
    assert [pair.p_holm for pair in comparison.pairs] == pytest.approx([1 / 2, 1, 1 / 2, 1])
    printed = compare.text(comparison)
    assert "\nmodel.head=motion       3  70.0%   60.0%    80.0%      10.0%\n" in printed
    assert "p (Holm)" in printed and "the deviation tells of it" in printed


def test_settings_are_told_by_what_a_reader_knows(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--", data_dir="/data/20", dataset="1a")
    save_run("two", "++++++++--", data_dir="/data/64", dataset="2b", start_weights="3c", init_from="one")
    save_run("three", "++++++++--", data_dir="/data/20", dataset="1a", seed=2, optimizer={"name": "sgd"})
    comparison = compare.compare(["one", "two", "three"], "test")
    one, two, three = comparison.differs_in
    assert "data_dir=/data/20, init_from=None" in one and "seed=1" in one
    assert "data_dir=/data/64, init_from=one" in two
    assert "optimizer.name=sgd" in three and "seed=2" in three
    assert "1a" not in one and comparison.methods == ()


def test_runs_of_different_clips_or_labels_are_refused(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    save_run("two", "++++++++", video_ids=VIDEO_IDS[2:], labels=LABELS[2:])
    message = (
        "one and two were evaluated on different videos: 2 are in one of them only, such as clip_0.avi, cl"
    )
    with pytest.raises(compare.CompareError, match=message):
        compare.compare(["one", "two"], "test")
    save_run("three", "++++++++--", labels=["b", *LABELS[1:]])
    message = r"one and three were .* different labels for 1 videos, such as clip_0.avi \(a and b\). Evaluate"
    with pytest.raises(compare.CompareError, match=message):
        compare.compare(["one", "three"], "test")


@pytest.mark.parametrize(
    ("names", "baseline", "message"),
    [
        (["one"], None, "^Name at least two runs, each once; got one.$"),
        (["one", "two", "one/"], None, "^Name at least two runs, each once; got one two one.$"),
        (["one", "two"], "three", "^The baseline three is none of the runs one two.$"),
        (["one", "nowhere"], None, "^nowhere is no run: there is no nowhere/config.json.$"),
    ],
)
def test_wrong_names_are_refused(
    save_run: Callable[..., str], names: list[str], baseline: str | None, message: str
) -> None:
    for name in ("one", "two"):
        save_run(name, "++++++++--")
    with pytest.raises(compare.CompareError, match=message):
        compare.compare(names, "test", baseline)


def test_a_run_that_is_not_evaluated_is_told_how(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    command = "Evaluate the run first: tools/evaluate.py --run_dir=one --data_dir=/data --split=val$"
    with pytest.raises(compare.CompareError, match=f"^There is no one/eval_val/metrics.json. {command}"):
        compare.read_run("one", "val")
    Path("one/eval_test/predictions.csv").unlink()
    with pytest.raises(compare.CompareError, match="^There is no one/eval_test/predictions.csv. Evaluate"):
        compare.read_run("one", "test")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "eval_test/metrics.json",
            lambda text: text[:20],
            "one/eval_test is damaged .* Evaluate the run again",
        ),
        (
            "eval_test/metrics.json",
            lambda text: text.replace("0.8", "0.7"),
            "metrics.json and predictions.csv do",
        ),
        (
            "eval_test/metrics.json",
            lambda text: text.replace('"views"', '"v"'),
            "is damaged .KeyError.'views'",
        ),
        (
            "eval_test/predictions.csv",
            lambda text: text[: text.index("clip_9")],
            "predictions.csv do not agree",
        ),
        ("eval_test/predictions.csv", lambda text: text.replace("predicted", "p"), "KeyError.'predicted'"),
        ("config.json", lambda text: text[:-1], "one/config.json cannot be read"),
        ("config.json", lambda text: "[]", "one/config.json cannot be read"),
    ],
)
def test_damaged_papers_are_named(
    save_run: Callable[..., str], name: str, edit: Callable[[str], str], message: str
) -> None:
    path = Path(save_run("one", "++++++++--"), name)
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))
    with pytest.raises(compare.CompareError, match=message):
        compare.read_run("one", "test")


def _written(save_run: Callable[..., str]) -> Path:
    save_run("one", "++++++++--")
    save_run("runs/<b>two</b>", "------+++-", head="notebook")
    save_run("three", "++++++++-+", seed=2)
    comparison = compare.compare(["one", "runs/<b>two</b>", "three"], "test")
    return compare.write(comparison, "new/compared")


def test_the_clips_with_different_answers_are_written(save_run: Callable[..., str]) -> None:
    path = _written(save_run)
    assert path == Path("new/compared/comparison.html")
    with (path.parent / "differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video_id"] for row in rows] == [*VIDEO_IDS[:6], *VIDEO_IDS[8:]]
    assert rows[0] == {
        "video_id": VIDEO_IDS[0],
        "label": "a",
        "one": "a",
        "runs/<b>two</b>": "b",
        "three": "a",
    }
    assert rows[-1] == {
        "video_id": VIDEO_IDS[9], "label": "b", "one": "a", "runs/<b>two</b>": "a", "three": "b",
    }  # fmt: skip
    assert sorted(path.name for path in path.parent.iterdir()) == ["comparison.html", "differences.csv"]
    Path("file").write_text("")
    with pytest.raises(compare.CompareError, match="Cannot write file/x .*Give another --output_dir"):
        compare.write(compare.compare(["one", "three"], "test"), "file/x")


def _column(browser: webdriver.Chrome, table: str, column: int) -> list[str]:
    script = "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)].map("
    return browser.execute_script(script + "row => row.cells[arguments[1]].innerText)", table, column)


def test_the_page_sorts_and_filters(save_run: Callable[..., str], browser: webdriver.Chrome) -> None:
    browser.get(_written(save_run).absolute().as_uri())
    assert _column(browser, "runs-table", 0) == ["one", "runs/<b>two</b>", "three"]
    assert _column(browser, "pairs-table", 1) == ["-50.0", "+10.0"]
    assert _column(browser, "methods-table", 1) == ["2", "1"]
    assert len(_column(browser, "clips-table", 0)) == 8

    heads = browser.find_elements(By.CSS_SELECTOR, "#pairs-table thead button")
    heads[1].click()
    heads[1].click()
    assert _column(browser, "pairs-table", 1) == ["+10.0", "-50.0"]

    def ticked(*names: str) -> list[str]:
        for box in browser.find_elements(By.CSS_SELECTOR, "form.filter input[type=checkbox]"):
            if box.is_selected() != (box.get_attribute("name") in names):
                box.click()
        return _column(browser, "clips-table", 0)

    assert ticked("wrong-0", "right-1") == ["clip_8.avi"]
    assert ticked("wrong-0") == ["clip_8.avi", "clip_9.avi"]
    assert ticked("right-2", "wrong-1") == [*VIDEO_IDS[:6], VIDEO_IDS[9]]
    assert ticked("right-0", "wrong-0") == []
    browser.find_element(By.CSS_SELECTOR, "form.filter input[type=search]").send_keys("clip_4")
    assert ticked() == ["clip_4.avi"]
    wrong = browser.execute_script("return [...document.querySelectorAll('td.wrong')].map(c => c.cellIndex)")
    assert wrong == [3]
    assert browser.get_log("browser") == []


def test_the_tool_prints_and_writes(save_run: Callable[..., str], tmp_path: Path) -> None:
    save_run("one", "++++++++--")
    save_run("two", "------+++-")
    flags = ("--baseline=two", "--output_dir=out")
    ended = run_tool("compare_runs.py", "one", "two", *flags, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Against two, clip by clip" in ended.stdout
    assert ended.stdout.endswith("clips get different answers.\nWritten to out/comparison.html.\n")
    ended = run_tool("compare_runs.py", "one", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == "compare_runs.py: name at least two runs. --help lists the flags.\n"

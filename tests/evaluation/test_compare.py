"""Comparisons by hand; runs that cannot be compared are named."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidpipe.evaluation.compare import CompareError, compare, read_run
from vidpipe.evaluation.significance import bootstrap_interval

VIDEO_IDS = [f"clip_{number}.avi" for number in range(10)]  # as `save_run` writes them
LABELS = [*"aaaaaaaaab"]


def test_two_runs_by_hand(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    save_run("two", "------+++-", head="notebook")
    comparison = compare(["one/", "two"], split="test")
    (pair,) = comparison.pairs
    assert (pair.run, pair.only_run, pair.only_baseline, pair.p_value) == ("two", 1, 6, 0.125)
    assert pair.difference == pytest.approx(-0.5)
    assert pair.interval == pytest.approx((-0.7636, -0.0215), abs=1e-4)
    assert pair.p_holm == pair.p_value
    assert comparison.differs_in == ("model.head=motion", "model.head=notebook")
    assert comparison.methods == ()
    assert comparison.disagreements == tuple(VIDEO_IDS[:6] + VIDEO_IDS[8:9])

    (turned,) = compare(["one", "two"], split="test", baseline="two").pairs
    assert (turned.run, turned.only_run, turned.only_baseline) == ("one", 6, 1)
    assert turned.difference == pytest.approx(0.5)


def test_the_order_of_the_clips_does_not_matter(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    save_run("two", "--++++++++"[::-1], video_ids=VIDEO_IDS[::-1], labels=LABELS[::-1])
    (pair,) = compare(["one", "two"], split="test").pairs
    assert (pair.only_run, pair.only_baseline) == (2, 2)


def test_runs_that_differ_only_in_the_seed_are_one_method(save_run: Callable[..., str]) -> None:
    save_run("m1", "++++++++--", seed=1)
    save_run("m2", "++++++----", seed=2, data_dir="/elsewhere", cache_features="off")
    save_run("m3", "+++++++---", seed=3)
    save_run("n1", "++++------", seed=1, head="notebook")
    save_run("n2", "++--++----", seed=2, head="notebook")
    comparison = compare(["n1", "m1", "m2", "n2", "m3"], split="test", baseline="m1")
    motion, notebook = comparison.methods
    assert (motion.name, motion.runs) == ("model.head=motion", ("m1", "m2", "m3"))
    assert (notebook.name, notebook.runs) == ("model.head=notebook", ("n1", "n2"))
    assert motion.accuracies == (0.8, 0.6, 0.7)
    assert (motion.mean, motion.deviation) == (pytest.approx(0.7), pytest.approx(0.1))
    assert (motion.difference, motion.interval) == (None, None)
    assert notebook.difference == pytest.approx(-0.3)
    fractions = (np.array([2, 2, 1, 1, 1, 1, 0, 0, 0, 0]) / 2, np.array([3, 3, 3, 3, 3, 3, 2, 1, 0, 0]) / 3)
    assert notebook.interval == bootstrap_interval(*fractions)
    assert comparison.differs_in[:2] == ("model.head=motion, seed=1", "model.head=notebook, seed=1")
    # 4, 2, 4 and 1 clips, all in favour of one run: each more clip halves p.
    assert [pair.p_value for pair in comparison.pairs] == pytest.approx([1 / 8, 1 / 2, 1 / 8, 1])
    assert [pair.p_holm for pair in comparison.pairs] == pytest.approx([1 / 2, 1, 1 / 2, 1])


def test_runs_of_other_crops_are_another_method(save_run: Callable[..., str]) -> None:
    for name, seed, crops in (("one", 1, 1), ("two", 2, 4)):
        save_run(name, "++++++++--", seed=seed, temporal_crops=crops)
    comparison = compare(["one", "two"], split="test")
    assert comparison.differs_in == ("temporal_crops=1, seed=1", "temporal_crops=4, seed=2")
    assert comparison.methods == ()


def test_digests_are_shown_as_the_setting_that_they_belong_to(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--", data_dir="/data/20", dataset="1a")
    save_run("two", "++++++++--", data_dir="/data/64", dataset="2b", start_weights="3c", init_from="one")
    save_run("three", "++++++++--", data_dir="/data/20", dataset="1a", seed=2, optimizer={"name": "sgd"})
    comparison = compare(["one", "two", "three"], split="test")
    one, two, three = comparison.differs_in
    assert "data_dir=/data/20, init_from=None" in one and "seed=1" in one
    assert "data_dir=/data/64, init_from=one" in two
    assert "optimizer.name=sgd" in three and "seed=2" in three
    assert "1a" not in one and comparison.methods == ()


def test_runs_on_different_clips_or_labels_are_rejected(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    save_run("two", "++++++++", video_ids=VIDEO_IDS[2:], labels=LABELS[2:])
    message = (
        "one and two were evaluated on different videos: 2 are in only one of them, such as clip_0.avi, cl"
    )
    with pytest.raises(CompareError, match=message):
        compare(["one", "two"], split="test")
    save_run("three", "++++++++--", labels=["b", *LABELS[1:]])
    message = r"one and three were .* different labels for 1 videos, such as clip_0.avi \(a and b\). Evaluate"
    with pytest.raises(CompareError, match=message):
        compare(["one", "three"], split="test")


@pytest.mark.parametrize(
    ("names", "baseline", "message"),
    [
        (["one"], None, "^Give at least two runs, each once; got one.$"),
        (["one", "two", "one/"], None, "^Give at least two runs, each once; got one two one.$"),
        (["one", "two"], "three", "^The baseline three is not one of the runs one two.$"),
        (["one", "nowhere"], None, "^nowhere is not a run: there is no nowhere/config.json.$"),
    ],
)
def test_wrong_names_are_rejected(
    save_run: Callable[..., str], names: list[str], baseline: str | None, message: str
) -> None:
    for name in ("one", "two"):
        save_run(name, "++++++++--")
    with pytest.raises(CompareError, match=message):
        compare(names, split="test", baseline=baseline)


def test_the_error_for_a_run_without_evaluation_has_the_command(save_run: Callable[..., str]) -> None:
    save_run("one", "++++++++--")
    command = "Evaluate the run first: tools/evaluate.py --run_dir=one --data_dir=/data --split=val$"
    with pytest.raises(CompareError, match=f"^There is no one/eval_val/metrics.json. {command}"):
        read_run("one", "val")
    Path("one/eval_test/predictions.csv").unlink()
    with pytest.raises(CompareError, match="^There is no one/eval_test/predictions.csv. Evaluate"):
        read_run("one", "test")


def _cut_last_row(text: str) -> str:
    return text[: text.index("clip_9")]


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "eval_test/metrics.json",
            lambda text: text[:20],
            "one/eval_test is corrupt .* Evaluate the run again",
        ),
        ("eval_test/metrics.json", lambda text: text.replace("0.8", "0.7"), "metrics.json was changed, or"),
        (
            "eval_test/predictions.csv",
            _cut_last_row,
            "one: predictions.csv changed after the evaluation. Eval",
        ),
        ("eval_test/predictions.csv", lambda text: text.replace("predicted", "p"), "has no 'predicted'"),
        (
            "config.json",
            lambda text: text.replace("motion", "notebook"),
            "one: config.json changed after the",
        ),
        ("config.json", lambda text: text[:-2], "one/config.json cannot be read"),
        ("config.json", lambda text: "[]", "one/config.json cannot be read"),
    ],
)
def test_corrupt_files_are_named(
    save_run: Callable[..., str], name: str, edit: Callable[[str], str], message: str
) -> None:
    path = Path(save_run("one", "++++++++--"), name)
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))
    with pytest.raises(CompareError, match=message):
        read_run("one", "test")


def test_an_evaluation_of_another_model_is_named(save_run: Callable[..., str]) -> None:
    """As after a run has gone on for more epochs."""
    save_run("one", "++++++++--")
    Path("one/model.keras").write_bytes(b"newer")
    message = (
        "^one: model.keras changed after the evaluation. Evaluate the run again: tools/evaluate.py --run"
    )
    with pytest.raises(CompareError, match=message):
        read_run("one", "test")


def test_an_evaluation_of_another_version_is_named(save_run: Callable[..., str]) -> None:
    path = Path(save_run("one", "++++++++--"), "eval_test/metrics.json")
    metrics = json.loads(path.read_text())
    del metrics["fingerprint"]
    path.write_text(json.dumps(metrics))
    with pytest.raises(CompareError, match="another version wrote it.. Evaluate the run again"):
        read_run("one", "test")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["config.json", "eval_test/metrics.json", "eval_test/predictions.csv"]),
    start=st.integers(0, 2500),
    length=st.integers(0, 30),
    text=st.text(max_size=8) | st.sampled_from(['"', "{", "null", "NaN", "[[", "1e999", ",", "-1", "\n"]),
)
def test_no_edit_ends_in_a_traceback_or_passes_in_silence(
    save_run: Callable[..., str], name: str, start: int, length: int, text: str
) -> None:
    shutil.rmtree("one", ignore_errors=True)
    save_run("one", "++++++++--")
    path = Path("one", name)
    before = path.read_bytes()
    content = before.decode()
    path.write_bytes((content[:start] + text + content[start + length :]).encode("utf-8", "replace"))
    if path.read_bytes() == before:
        read_run("one", "test")
    elif name != "eval_test/metrics.json":
        with pytest.raises(CompareError, match=r"^[^\n]*$"):
            read_run("one", "test")
    else:
        expected = json.loads(before)
        del expected["fingerprint"]
        with contextlib.suppress(CompareError):  # white space is no change of its content
            assert read_run("one", "test").metrics == expected

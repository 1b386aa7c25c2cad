"""The validation split: stratified, groups are never divided, and what could not be done is said."""

import logging
from collections import Counter

import pytest

from vidpipe.data.validation_split import assign_validation
from vidpipe.data.video_row import VideoRow


def _rows(classes: dict[str, list[int]]) -> list[VideoRow]:
    """Makes train rows of classes whose groups have the given sizes."""
    return [
        VideoRow(f"{name}/{group}-{clip}", "", name, "train", f"{name}/{group}")
        for name, sizes in classes.items()
        for group, size in enumerate(sizes)
        for clip in range(size)
    ]


def _split(classes: dict[str, list[int]]) -> list[VideoRow]:
    return assign_validation(_rows(classes), val_fraction=0.1, seed=1)


def test_validation_is_stratified_and_does_not_divide_groups() -> None:
    rows = _split({"a": [4] * 10, "b": [5] * 10, "c": [3] * 10})
    assert Counter((row.label_name, row.split) for row in rows if row.split == "val") == {
        ("a", "val"): 4, ("b", "val"): 5, ("c", "val"): 3,
    }  # fmt: skip
    held_out = {row.group for row in rows if row.split == "val"}
    assert held_out.isdisjoint(row.group for row in rows if row.split == "train")


def test_with_few_groups_every_class_still_has_a_validation_group() -> None:
    rows = _split({"a": [5] * 6, "b": [5] * 6, "c": [5] * 6})
    assert Counter(row.label_name for row in rows if row.split == "val") == {"a": 5, "b": 5, "c": 5}


@pytest.mark.parametrize("num_groups", [2, 3, 4, 5])
def test_small_classes_still_have_a_validation_clip_each(num_groups: int) -> None:
    rows = _split({"a": [1] * num_groups, "b": [1] * num_groups})
    assert Counter(row.label_name for row in rows if row.split == "val") == {"a": 1, "b": 1}


def test_a_small_class_does_not_enlarge_the_validation_part_of_other_classes() -> None:
    rows = _split({"a": [1] * 40, "b": [1] * 40, "rare": [1, 1]})
    assert sum(row.split == "val" for row in rows if row.label_name != "rare") == 8


def test_validation_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    rows = _rows({"a": [1] * 40, "b": [1] * 40})

    def held_out(rows: list[VideoRow], seed: int) -> set[str]:
        rows = assign_validation(rows, val_fraction=0.1, seed=seed)
        return {row.video_id for row in rows if row.split == "val"}

    assert held_out(rows, 1) == held_out(rows[::-1], 1)
    assert held_out(rows, 1) != held_out(rows, 2)
    assert len(held_out(rows, 1)) == 8


def test_a_class_of_one_group_stays_in_train(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rows = _split({"a": [2] * 10, "rare": [3]})
    assert {row.split for row in rows if row.label_name == "rare"} == {"train"}
    assert "No validation clip for rare" in caplog.text


def test_test_rows_never_move() -> None:
    rows = [
        VideoRow(str(index), "", "a", "test" if index % 2 else "train", str(index)) for index in range(40)
    ]
    rows = assign_validation(rows, val_fraction=0.5, seed=1)
    assert {row.split for row in rows if int(row.video_id) % 2} == {"test"}


def test_a_fraction_that_groups_do_not_allow_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    _split({"a": [10, 10], "b": [10, 10]})
    assert "50 % of the training videos are held out for validation instead of 10 %" in caplog.text


@pytest.mark.parametrize("classes", [{"a": [4] * 10, "b": [5] * 10}, {"a": [1] * 3, "b": [1] * 3}])
def test_a_fraction_as_near_as_clips_allow_is_not_reported(
    classes: dict[str, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    _split(classes)
    assert not caplog.records

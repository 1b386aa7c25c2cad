"""Continuous integration runs every test: no marker, folder or file is left out."""

import configparser
import re
import shlex
from pathlib import Path

import conftest
import pytest

ROOT = Path(__file__).parents[1]


def _declared_markers() -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return {line.partition(":")[0] for line in config["tool:pytest"]["markers"].split("\n") if line}


def _pytest_commands(mode: str) -> list[str]:
    """The pytest command of tools/test.sh for its first argument."""
    text = (ROOT / "tools" / "test.sh").read_text(encoding="utf-8")
    return re.findall(rf"^    {re.escape(mode)}\) (.*-m pytest.*) ;;$", text, re.MULTILINE)


def test_both_lanes_run_all_tests() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    runs = [line.strip() for line in lines if "tools/test.sh" in line]
    assert runs == ["bash tools/test.sh all", 'VENV=.venv313 PYTHON="$python" bash tools/test.sh all']


def test_all_selects_every_marker() -> None:
    """Only the fast run deselects, and only what is slow."""
    (everything,), (fast,) = _pytest_commands("all"), _pytest_commands('""')
    assert not {"-m", "-k", "--ignore", "--deselect"} & set(shlex.split(everything)[3:])
    assert shlex.split(fast)[-2:] == ["-m", "not slow"]


def test_every_marker_is_declared_and_makes_a_test_slow() -> None:
    assert _declared_markers() == {"slow", *conftest.SLOW_KINDS}


@pytest.mark.parametrize("kind", conftest.SLOW_KINDS)
def test_every_kind_of_slow_test_exists(kind: str) -> None:
    pattern = re.compile(rf"pytest\.mark\.{kind}\b")
    paths = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(pattern.search(path.read_text(encoding="utf-8")) for path in paths)

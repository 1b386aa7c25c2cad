"""The arrows of the design: imports point one way, and third parties enter by one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module may import those before it; the conversion half ends with convert.
ORDER = (
    "spec", "sampling", "config", "manifest", "video", "worker", "records", "remote", "shards", "progress",
    "convert", "convert_beam", "verify", "shard_cache", "augment", "input_pipeline", "report", "page",
    "backbone", "model", "memory", "feature_cache", "checkpoint", "optimizer", "step", "distribution", "loop",
    "train", "evaluate", "compare", "export", "export_features", "predict", "serve",
)  # fmt: skip
SHARED = {
    "spec", "sampling", "config", "manifest", "records", "remote", "shards", "progress", "video", "worker",
}  # fmt: skip
DOORS = {
    "cv2": {"video"},
    "sklearn": {"evaluate", "manifest"},
    "tensorflow_io": {"remote"},
    "matplotlib": {"report"},
    "pebble": {"worker"},
    "jinja2": {"page"},
    "PIL": {"predict"},
    "flask": {"serve"},
    "waitress": {"serve"},
    "apache_beam": {"convert_beam"},
}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in _imports(path) if name.startswith("vidpipe.")} & set(ORDER)


MODULES = sorted(path.stem for path in (ROOT / "vidpipe").glob("*.py") if path.stem != "__init__")


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    assert _ours(ROOT / "vidpipe" / f"{module}.py") <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", MODULES[:])
def test_the_two_halves_meet_in_the_shared_modules_only(module: str) -> None:
    after = ORDER[ORDER.index("convert_beam") + 1 :]
    if module in after:
        assert _ours(ROOT / "vidpipe" / f"{module}.py") <= SHARED | set(after)


@pytest.mark.parametrize("module", MODULES)
def test_third_parties_enter_by_one_door(module: str) -> None:
    for name in {name.split(".")[0] for name in _imports(ROOT / "vidpipe" / f"{module}.py")}:
        assert module in DOORS.get(name, {module})
    assert "absl" not in {name.split(".")[0] for name in _imports(ROOT / "vidpipe" / f"{module}.py")}


def test_the_conversion_half_imports_no_keras() -> None:
    for module in ORDER[: ORDER.index("convert_beam") + 1]:
        assert not any(name.startswith("keras") for name in _imports(ROOT / "vidpipe" / f"{module}.py"))


def test_tools_do_not_shadow_the_standard_library() -> None:
    for path in (ROOT / "tools").glob("*.py"):
        assert path.stem not in sys.stdlib_module_names


def test_what_a_worker_imports_is_free_of_tensorflow() -> None:
    script = "import sys, vidpipe.video, vidpipe.config; print({'tensorflow', 'keras'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"

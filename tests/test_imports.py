"""The arrows of the design: packages import in one direction, and third-party libraries have one importer."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vidpipe"
# A module may import its own package and the ones before it.
ORDER = ("", "storage", "data", "labels", "display", "model", "training", "evaluation", "inference")
# The order of the modules beside the packages. `command_line` is for the tools alone.
TOP_LEVEL = ("errors", "config", "progress", "interruption", "devices", "command_line")
IMPORTERS = {
    "absl": {"command_line"},
    "apache_beam": {"data.convert_beam"},
    "av": {"data.forward_decoder", "data.live_stream", "data.pixels", "data.video_file"},
    "cv2": {"data.live_stream", "data.pixels", "data.video"},
    "distributed": {"data.convert_dask"},
    "flask": {"inference.web_app"},
    "jinja2": {"display.page"},
    "PIL": {"inference.gif"},
    "matplotlib": {"display.figures", "display.fonts"},
    "pebble": {"data.process_pool"},
    "threadpoolctl": {"training.linear_part"},
    "sklearn": {
        "data.validation_split",
        "evaluation.evaluate",
        "evaluation.metrics",
        "training.linear_part",
    },
    "tensorflow_io": {"storage.remote"},
    "tqdm": {"progress"},
    "waitress": {"inference.serve"},
}
# What a spawned decoding process imports.
WORKER_MODULES = ("vidpipe.config", "vidpipe.data.video", "vidpipe.data.process_pool", "vidpipe.progress")

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _package(module: str) -> str:
    return module.rpartition(".")[0]


def _imported_modules(module: str) -> set[str]:
    """Modules of vidpipe that a module of vidpipe imports."""
    names = {name.removeprefix("vidpipe.") for name in _imports(MODULES[module])}
    return names & set(MODULES)


def test_every_package_has_a_position_in_the_order() -> None:
    assert {_package(module) for module in MODULES} == set(ORDER)
    assert {module for module in MODULES if not _package(module)} == set(TOP_LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_in_one_direction(module: str) -> None:
    package = _package(module)
    for imported in _imported_modules(module):
        assert imported != "command_line"
        if package:
            assert ORDER.index(_package(imported)) <= ORDER.index(package), f"{module} imports {imported}"
        else:
            assert TOP_LEVEL.index(imported) < TOP_LEVEL.index(module), f"{module} imports {imported}"


def test_packages_have_no_import_cycles() -> None:
    waiting = {module: _imported_modules(module) for module in MODULES}
    while waiting:
        ready = {module for module, imported in waiting.items() if not imported & set(waiting)}
        assert ready, f"import cycle among {sorted(waiting)}"
        for module in ready:
            del waiting[module]


@pytest.mark.parametrize("module", MODULES)
def test_third_party_libraries_have_one_importer(module: str) -> None:
    for name in {name.split(".")[0] for name in _imports(MODULES[module])}:
        assert module in IMPORTERS.get(name, {module}), f"{module} imports {name}"


def test_every_importer_still_imports_its_library() -> None:
    for library, importers in IMPORTERS.items():
        for module in importers:
            assert library in {name.split(".")[0] for name in _imports(MODULES[module])}


def test_the_data_package_imports_no_keras() -> None:
    for module, path in MODULES.items():
        if _package(module) in ("storage", "data"):
            assert not any(name.split(".")[0] == "keras" for name in _imports(path)), module


def test_no_other_package_imports_the_labels_package() -> None:
    """The manifest is what passes from it to the others; only its tool imports it."""
    for module in MODULES:
        if _package(module) != "labels":
            assert "labels" not in {_package(imported) for imported in _imported_modules(module)}, module


def test_inits_import_nothing() -> None:
    """Importing a package must not load TensorFlow into spawned decoding processes."""
    for path in [*PACKAGE.rglob("__init__.py"), ROOT / "tools" / "__init__.py"]:
        assert not _imports(path), path


def test_tools_do_not_shadow_the_standard_library() -> None:
    for path in (ROOT / "tools").rglob("*.py"):
        assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names


def test_tests_mirror_the_packages() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests").as_posix()
        assert folder in (".", "tools", *ORDER), path


def test_worker_modules_and_tools_are_free_of_tensorflow() -> None:
    tools = [f"tools.{path.stem}" for path in (ROOT / "tools").glob("*.py") if path.stem != "__init__"]
    names = ", ".join([*WORKER_MODULES, *tools])
    script = f"import sys, {names}; print({{'tensorflow', 'keras'}} & set(sys.modules))"
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert printed.stdout.strip() == "set()"

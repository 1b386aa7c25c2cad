"""The command line: flags from settings, grouped help, exit codes, one clear line for each error."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidpipe.command_line import COMMANDS, Command
from vidpipe.config import PredictionConfig, TrainConfig, check, setting
from vidpipe.errors import VidpipeError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Inner:  # noqa: D101
    rate: float = setting(0.5, help="Rate of learning.", group="Numbers", above=0, below=1)
    steps: tuple[int, int] | None = setting(None, help="Steps.", group="Numbers", at_least=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Outer:  # noqa: D101
    path: str = setting(help="Where it goes.", group="Input and output")
    inner: Inner
    colour: str = setting("red", help="Colour.", flag="color", choices=("red", "blue"))
    names: tuple[str, ...] | None = setting(None, help="Names.")
    size: int | None = setting(4, help="Size.", group="Numbers", none="auto", at_least=1)
    fast: bool = setting(False, help="Be fast.")

    def __post_init__(self) -> None:
        check(self)


def _command(arguments: str = "") -> tuple[Command, list[Outer], list[list[str]]]:
    """A command that collects its settings and arguments."""
    command = Command("Does a thing.\n\n    python thing.py --path=x\n", arguments)
    read = command.settings(Outer)
    found: list[Outer] = []
    rest: list[list[str]] = []

    def main(arguments: list[str]) -> None:
        found.append(read())
        rest.append(arguments)

    command.main = main  # type: ignore[attr-defined]
    return command, found, rest


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--rate=0.25", "--color=blue"], {"inner": Inner(rate=0.25), "colour": "blue"}),
        (["--steps=2:7"], {"inner": Inner(steps=(2, 7))}),
        (["--names=a,b"], {"names": ("a", "b")}),
        (["--names="], {"names": ()}),
        (["--size=auto"], {"size": None}),
        (["--size=9", "--fast"], {"size": 9, "fast": True}),
    ],
)
def test_flags_become_settings(flags: list[str], expected: dict) -> None:
    command, found, _ = _command()
    assert command.run(command.main, ["thing.py", "--path=x", *flags]) == 0  # type: ignore[attr-defined]
    assert found == [Outer(**{"path": "x", "inner": Inner()} | expected)]


def test_flags_override_a_base_and_nothing_else_does() -> None:
    command = Command("Doc.")
    read = command.settings(Outer)
    base = Outer(path="base", inner=Inner(rate=0.9), colour="blue", size=None)
    found: list[Outer] = []

    def main(_: list[str]) -> None:
        found.append(read(base))

    assert command.run(main, ["thing.py", "--path=x", "--size=3"]) == 0
    assert found == [Outer(path="x", inner=Inner(rate=0.9), colour="blue", size=3)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--path is required. --help lists the flags."),
        (["--path=x", "--rate=1"], "rate must be in (0, 1); got 1.0. --help lists the flags."),
        (["--path=x", "--rate=fast"], "flag --rate=fast: "),
        (["--path=x", "--color=green"], "color must be one of red, blue; got green. --help lists the flags."),
        (["--path=x", "--size=0"], "size must be at least 1; got 0. --help lists the flags."),
        (["--path=x", "--size=big"], "size must be a number or auto; got big."),
        (["--path=x", "--steps=5"], "steps must be FIRST:LAST, such as 10:15; got 5."),
        (["--path=x", "--colour=red"], "Unknown command line flag 'colour'. Did you mean: color."),
        (["--path=x", "more"], "unexpected arguments: more. --help lists the flags."),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_code_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, found, _ = _command()
    assert command.run(command.main, ["thing.py", *flags]) == 2  # type: ignore[attr-defined]
    printed = capsys.readouterr()
    assert (printed.out, found) == ("", [])
    assert printed.err.startswith(f"thing.py: {message}")
    assert printed.err.count("\n") == 1


def test_arguments_follow_flags_and_the_separator_ends_them() -> None:
    command, _, rest = _command("FILE...")
    command.run(command.main, ["thing.py", "a", "--path=x", "b", "--", "--help"])  # type: ignore[attr-defined]
    assert rest == [["a", "b", "--help"]]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (VidpipeError("The disk is full. Delete something."), 1, "The disk is full. Delete something."),
        (FileNotFoundError(2, "No such file", "/nowhere/a"), 1, "No such file: /nowhere/a"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            MemoryError("no room"), 1, "Out of memory (no room). Close what else uses the memory (nvidia-smi "
            "lists what uses a GPU), or take a larger machine.",
        ),
    ],
)  # fmt: skip
def test_what_fails_is_one_line_without_a_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> None:
        raise error

    assert Command("Doc.").run(main, ["/tools/thing.py"]) == code
    assert capsys.readouterr().err == f"thing.py: {message}\n"


def test_out_of_memory_names_the_flag_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    """TensorFlow's error is known by its name."""

    class ResourceExhaustedError(Exception):
        pass

    def main(_: list[str]) -> None:
        raise ResourceExhaustedError("OOM when allocating tensor with shape[9]\n[[node]]")

    command = Command("Doc.")
    command.settings(PredictionConfig)
    assert command.run(main, ["thing.py", "--run_dir=r"]) == 1
    assert capsys.readouterr().err == (
        "thing.py: Out of memory (OOM when allocating tensor with shape[9]). Close what else uses the memory "
        "(nvidia-smi lists what uses a GPU), give a smaller --batch_size, or take a larger machine.\n"
    )


def test_a_bug_is_a_traceback() -> None:
    def main(_: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Command("Doc.").run(main, ["thing.py"])


@pytest.mark.parametrize(
    "command",
    [
        "Command('Doc.').run(lambda _: print('x' * 10**6), ['thing.py'])",
        "Command('Doc.').run(lambda _: print('x'), ['thing.py'])",
        "setattr(sys, 'argv', ['vidpipe', '--help']) or main()",
    ],
)
def test_a_reader_that_has_seen_enough_gets_no_message(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = f"import sys; from vidpipe.command_line import Command, main; sys.exit({command})"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered,
        check=False, cwd=ROOT,
    )  # fmt: skip
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_help_groups_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """Input and output first, other settings last; each flag with its default, choices and bounds."""
    command, found, _ = _command("FILE...")
    assert command.run(command.main, ["thing.py", "--help", "--rate=wrong"]) == 0  # type: ignore[attr-defined]
    lines = capsys.readouterr().out.splitlines()
    assert not found
    assert lines[:5] == [
        "Does a thing.",
        "",
        "    python thing.py --path=x",
        "",
        "Usage: thing.py [FLAGS] FILE...",
    ]
    headings = [line for line in lines[5:] if line and not line.startswith(" ")]
    assert headings == ["Input and output", "Numbers", "Other settings"]
    assert "  --path=TEXT                 Where it goes. Required." in lines
    assert "  --rate=0.5                  Rate of learning. In (0, 1)." in lines
    assert "  --color=red                 Colour. One of red, blue." in lines
    assert "  --steps=FIRST:LAST          Steps. At least 1." in lines


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_module_whose_help_works(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = __import__(f"tools.{COMMANDS[command]}", fromlist=["run"])
    assert module.run([f"vidpipe {command}", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith((module.__doc__ or "").strip().splitlines()[0])
    assert f"Usage: vidpipe {command} [FLAGS]" in printed


def test_every_setting_of_training_is_a_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    from tools import train

    train.run(["train.py", "--help"])
    printed = capsys.readouterr().out
    for name, value in (("epochs", TrainConfig.epochs), ("batch_size", TrainConfig.batch_size)):
        assert f"--{name}={value} " in printed
    for group in ("Input and output", "Training", "Model", "Optimization", "Augmentation", "Device"):
        assert f"\n{group}\n" in printed


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], (16, 30, "none", "motion", 0.1, 0.99)),
        (["--recipe=frozen"], (16, 30, "none", "motion", 0.1, 0.99)),
        (["--recipe=fine_tune"], (16, 20, "block5", "motion", 0.1, 0.99)),
        (["--recipe=notebook"], (64, 10, "none", "notebook", 0.0, 0.0)),
        (["--recipe=notebook", "--ema=0.9", "--epochs=3"], (64, 3, "none", "notebook", 0.0, 0.9)),
        (["--recipe=fine_tune", "--batch_size=auto"], (None, 20, "block5", "motion", 0.1, 0.99)),
        (["--recipe=fine_tune", "--fine_tune=all", "--ema=0"], (16, 20, "all", "motion", 0.1, 0.0)),
    ],
)  # fmt: skip
def test_a_recipe_sets_defaults_and_flags_override_them(
    flags: list[str], expected: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools import train
    from vidpipe.training import train as training

    made: list[TrainConfig] = []

    def stop(config: TrainConfig) -> None:
        made.append(config)
        raise VidpipeError("enough")

    monkeypatch.setattr(training, "train", stop)
    assert train.run(["train.py", "--data_dir=d", "--run_dir=r", *flags]) == 1
    (config,) = made
    found = (
        config.batch_size, config.epochs, config.model.fine_tune, config.model.head, config.label_smoothing,
        config.optimizer.ema,
    )  # fmt: skip
    assert found == expected

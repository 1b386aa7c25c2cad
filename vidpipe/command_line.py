"""The command line of every tool: flags made from settings, help by groups, and one line for each error.

`vidpipe COMMAND` of an installed package and `python tools/COMMAND.py` of a checkout run the same modules.
"""

import dataclasses
import importlib
import io
import logging
import os
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable
from typing import Any, TypeVar

# Before TensorFlow is loaded: its start-up notices and its C++ log are not about the user's job.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

import vidpipe
from vidpipe import interruption
from vidpipe.config import ConfigError, Setting
from vidpipe.errors import VidpipeError, first_line

# The commands after installation, and their modules in tools/.
COMMANDS = {
    "convert": "convert_videos",
    "inspect": "inspect_shards",
    "train": "train",
    "evaluate": "evaluate",
    "compare": "compare_runs",
    "predict": "predict",
    "serve": "serve",
    "export": "export",
    "import": "import_labels",
    "evaluate-events": "evaluate_events",
    "demo-videos": "make_demo_videos",
}

_HELP_COLUMN = 30
_FIRST_GROUP, _LAST_GROUP = "Input and output", Setting(help="").group
_DEFINE: dict[Any, Callable[..., flags.FlagHolder]] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    tuple[str, ...]: flags.DEFINE_list,
}
_METAVARS = {int: "N", float: "X", str: "TEXT", tuple[str, ...]: "A,B", tuple[int, int]: "FIRST:LAST"}

_Config = TypeVar("_Config")


@dataclasses.dataclass(frozen=True)
class _Flag:
    """A flag: its setting and its type, without the `| None` of an optional one."""

    setting: Setting
    name: str
    type: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def help(self) -> str:
        """The help text with choices, bounds and whether the flag is required."""
        parts = [self.setting.help]
        if self.setting.choices:
            parts.append(f"One of {', '.join(self.setting.choices)}.")
        if self.setting.range:
            parts.append(f"{self.setting.range[0].upper()}{self.setting.range[1:]}.")
        if self.required:
            parts.append("Required.")
        return " ".join(parts)

    @property
    def usage(self) -> str:
        """The flag as it is written, with its default."""
        if self.type is bool:
            return f"--{self.name}" if not self.default else f"--no{self.name}"
        if self.required or self.default is None:
            return f"--{self.name}={_METAVARS[self.type]}"
        return f"--{self.name}={self.default}"


class Command:
    """A command: flags, their help, and how it ends.

    Args:
      doc: the module's docstring; its first paragraph says what the command does.
      arguments: what else the command line takes, such as "VIDEO..."; empty where it takes nothing else.
    """

    def __init__(self, doc: str, arguments: str = "") -> None:
        self._doc, self._arguments = doc, arguments
        self._flags: list[_Flag] = []
        self._values = flags.FlagValues()
        self._program = ""

    def settings(self, cls: type[_Config]) -> Callable[..., _Config]:
        """Defines a flag for each setting of a config class and of the configs nested in it.

        Returns:
          A function that reads the flags into a config, once they are parsed. Given another config of this
          class, it takes the values of flags that the command line does not give from that one.
        """
        types = typing.get_type_hints(cls)
        nested: dict[str, Callable[..., Any]] = {}
        known: dict[str, _Flag] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if dataclasses.is_dataclass(types[field.name]):
                nested[field.name] = self.settings(types[field.name])
            else:
                details: Setting = field.metadata["setting"]
                optional = [part for part in typing.get_args(types[field.name]) if part is not type(None)]
                is_optional = type(None) in typing.get_args(types[field.name])
                kind = optional[0] if is_optional else types[field.name]
                known[field.name] = _Flag(details, details.flag or field.name, kind, field.default)
        self._flags += known.values()

        def read(base: _Config | None = None) -> _Config:
            values = {name: each(base and getattr(base, name)) for name, each in nested.items()}
            for name, flag in known.items():
                if base is not None and not self.given(flag.name):
                    values[name] = getattr(base, name)
                else:
                    values[name] = _value(flag, self._values[flag.name].value)
            return cls(**values)

        return read

    def given(self, name: str) -> bool:
        """Whether the command line gives the flag `name`."""
        return bool(self._values[name].present)

    def usage_error(self, message: str) -> typing.NoReturn:
        """Ends with exit code 2 and one line."""
        raise ConfigError(message)

    def run(self, main: Callable[[list[str]], int | None], argv: list[str]) -> int:
        """Runs `main` with the arguments that are no flags.

        Args:
          main: returns the exit code, None for 0.
          argv: the program's name and its arguments.

        Returns:
          The exit code: 0 done, 1 failed, 2 wrong usage, 128 + n ended by signal n. An error that the user
          can correct, or an error of the operating system, is one line on stderr without a traceback.
        """
        self._program = os.path.basename(argv[0])  # noqa: PTH119
        # stderr as it is now: a process that runs several commands may have replaced it in between.
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it logs its fonts at its first start
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows \u540d for a letter
                stream.reconfigure(errors="backslashreplace")
        with interruption.watched(self._program):
            return self._run(main, argv)

    def _run(self, main: Callable[[list[str]], int | None], argv: list[str]) -> int:
        try:
            if _asks_for_help(argv):
                self.print_help()
                return 0
            self._values = self._define()
            _, *arguments = self._values(argv)
            if arguments and not self._arguments:
                self.usage_error(f"unexpected arguments: {' '.join(arguments)}")
            code = main(arguments) or 0
            sys.stdout.flush()
        except flags.Error as error:
            code = self._fail(f"{str(error).strip().rstrip('.?').strip()}. --help lists the flags.", 2)
        except ConfigError as error:
            code = self._fail(f"{str(error).rstrip('.')}. --help lists the flags.", error.exit_code)
        except VidpipeError as error:
            code = self._fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            code = self._fail("interrupted", interruption.EXIT_CODE)
        except Exception as error:
            if interruption.is_interrupted():  # an import or a callback made another error of it
                code = self._fail("interrupted", interruption.EXIT_CODE)
            elif isinstance(error, BrokenPipeError):
                code = _closed_pipe()
            elif isinstance(error, OSError):
                where = f": {error.filename}" if error.filename else ""
                code = self._fail(f"{error.strerror or error}{where}", 1)
            elif _is_out_of_memory(error):
                smaller = "give a smaller --batch_size, " if "batch_size" in self._values else ""
                code = self._fail(
                    f"Out of memory ({first_line(error)}). Close what else uses the memory (nvidia-smi "
                    f"lists what uses a GPU), {smaller}or take a larger machine.",
                    1,
                )
            else:
                raise
        return code

    def print_help(self) -> None:
        """Prints what the command does and its flags by groups, the important ones first."""
        width = min(110, shutil.get_terminal_size((100, 20)).columns)
        print(self._doc.strip())
        usage = f"{self._program} [FLAGS] {self._arguments}".rstrip()
        print(f"\nUsage: {usage}")
        groups = dict.fromkeys(flag.setting.group for flag in self._flags)
        for group in sorted(groups, key=lambda group: (group == _LAST_GROUP, group != _FIRST_GROUP)):
            print(f"\n{group}")
            for flag in self._flags:
                if flag.setting.group == group:
                    print(_help_lines(flag, width))

    def _define(self) -> flags.FlagValues:
        """New flags for each run, so that one process can run a command several times."""
        values = flags.FlagValues()
        values.set_gnu_getopt(True)
        for flag in self._flags:
            default = None if flag.required else flag.default
            if flag.setting.none is not None or flag.type not in _DEFINE:
                default = None if default is None else str(default)
                flags.DEFINE_string(flag.name, default, flag.help, flag_values=values)
            else:
                _DEFINE[flag.type](flag.name, default, flag.help, flag_values=values)
        return values

    def _fail(self, message: str, code: int) -> int:
        print(f"{self._program}: {message}", file=sys.stderr)
        return code


def _asks_for_help(argv: list[str]) -> bool:
    before_separator = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    return bool({"--help", "-help", "-h", "--helpfull", "--helpshort"} & set(before_separator))


def load_tensorflow() -> None:
    """Imports TensorFlow, once the flags are known to be right: it takes seconds.

    From 2.21 on its C++ side writes notices to stderr before its log can be silenced; what it writes during
    the import is dropped. An import that fails still raises.
    """
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow

        tensorflow.get_logger().setLevel(logging.ERROR)  # tf.distribute logs every collective it traces
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def leave(code: int) -> typing.NoReturn:
    """Ends the process with `code`, also where tensorflow-io is loaded, and at once after Ctrl-C."""
    # The S3 client of tensorflow-io aborts the interpreter at exit with exit code 134 (tensorflow/io issue
    # 1912). After Ctrl-C there may be threads whose end Python would wait for.
    if "tensorflow_io" in sys.modules or code == interruption.EXIT_CODE:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main() -> None:
    """Runs `vidpipe COMMAND ...`, the installed form of the scripts in tools/."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--version", "version"):
        print(f"vidpipe {vidpipe.__version__}")
    elif name in COMMANDS:
        leave(_module(name).run([f"vidpipe {name}", *rest]))
    elif name in ("--help", "-h", "help"):
        try:
            _print_commands()
            sys.stdout.flush()
        except BrokenPipeError:
            leave(_closed_pipe())
    else:
        print(f"vidpipe: no command {name}; there are {', '.join(COMMANDS)}.", file=sys.stderr)
        leave(2)


def _print_commands() -> None:
    print("Trains video classifiers: videos to TFRecords to one fused TensorFlow model.\n")
    for name in COMMANDS:
        print(f"  vidpipe {name:16}  {_module(name).__doc__.strip().splitlines()[0]}")
    print("\nvidpipe COMMAND --help lists the flags of a command.")


def _closed_pipe() -> int:
    """Returns the exit code when the reader of stdout has seen enough, as `head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _is_out_of_memory(error: Exception) -> bool:
    # By its name: TensorFlow is not imported here.
    is_from_tensorflow = type(error).__name__ == "ResourceExhaustedError" and "OOM" in str(error)
    return is_from_tensorflow or isinstance(error, MemoryError)


def _module(command: str) -> Any:
    return importlib.import_module(f"vidpipe.tools.{COMMANDS[command]}")


def _value(flag: _Flag, value: Any) -> Any:
    """The value of a flag as its setting has it.

    Raises:
      ConfigError: the text is none of what the flag takes.
    """
    if flag.required and value is None:
        raise ConfigError(f"--{flag.name} is required")
    if value is None or value == flag.setting.none:
        return None
    if flag.type == tuple[str, ...]:
        return tuple(value)
    if flag.type == tuple[int, int]:
        first, _, last = value.partition(":")
        if not (first.isdecimal() and last.isdecimal()):
            raise ConfigError(f"{flag.name} must be FIRST:LAST, such as 10:15; got {value}.")
        return int(first), int(last)
    if flag.setting.none is not None and not isinstance(value, flag.type):
        try:
            return flag.type(value)
        except ValueError:
            raise ConfigError(f"{flag.name} must be a number or {flag.setting.none}; got {value}.") from None
    return value


def _help_lines(flag: _Flag, width: int) -> str:
    usage = f"  {flag.usage}"
    text = textwrap.wrap(flag.help, width - _HELP_COLUMN, break_on_hyphens=False)
    if len(usage) + 2 <= _HELP_COLUMN:
        text[0] = f"{usage:{_HELP_COLUMN}}{text[0]}"
    else:
        text.insert(0, usage)
    return "\n".join([text[0], *(" " * _HELP_COLUMN + line for line in text[1:])])

"""The common way of running a stage from the command line: flags from a dataclass, clear errors.

A stage declares each option once, as a field of a frozen dataclass whose metadata says `help`; the
flag's name, type and default follow from it.
"""

import dataclasses
import pathlib
import sys
import typing
from collections.abc import Callable
from typing import Any, cast

from absl import app, flags, logging

from data_pipeline import storage

flags.disclaim_key_flags()  # `--help` of a command shows the flags that it defines through here


def flag(help: str, *, changes_output: bool = True) -> dict[str, Any]:
    """The metadata of a dataclass field that is also a flag."""
    return {"help": help, "changes_output": changes_output}


def define_flags(*schemas: type) -> None:
    """One flag for each field of the dataclasses whose metadata is made with `flag`."""
    for schema in schemas:
        hints = typing.get_type_hints(schema)
        for field in dataclasses.fields(schema):
            if "help" in field.metadata:
                _define_flag(field, hints[field.name])


def define_output_flags() -> None:
    """The flags that every stage has."""
    flags.DEFINE_string("output", "", "the folder to write")
    flags.DEFINE_bool("overwrite", False, "replace what an earlier run left in --output")


def define_tokenizer_flag() -> None:
    """The flag of the stages that need the model's tokenizer."""
    flags.DEFINE_string("tokenizer", "", "Hugging Face folder of the tokenizer, or embedded")


def output_dir() -> storage.Path:
    """The folder named by --output."""
    require(bool(flags.FLAGS.output), "--output is not set; name the folder to write")
    return storage.as_path(flags.FLAGS.output)


def local_output_dir() -> pathlib.Path:
    """The folder named by --output, which must be on this machine."""
    folder = output_dir()
    require(isinstance(folder, pathlib.Path), f"--output={folder}: name a local folder")
    return pathlib.Path(str(folder))


def options_from_flags(schema: type) -> Any:
    """The dataclass that the command line describes."""
    return schema(
        **{
            field.name: flags.FLAGS[field.name].value
            for field in dataclasses.fields(schema)
            if "help" in field.metadata
        }
    )


def require_choice(setting: str, value: Any, choices: Any) -> None:
    """ValueError unless `value` is one of the values of a Literal."""
    allowed = typing.get_args(choices)
    if value not in allowed:
        raise ValueError(f"--{setting}={value!r} must be one of {', '.join(map(repr, allowed))}")


def require(condition: bool, message: str) -> None:
    """ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def run(main: Callable[[list[str]], None]) -> None:
    """Run a command: `main` gets the positional arguments.

    What a user can cause, a ValueError, or the machine, an OSError (a full disk, a file that may
    not be read), or a store, ends as one line on stderr and exit code 1; with --debug as a
    traceback.
    """
    debug = flags.DEFINE_bool("debug", False, "on an error show the traceback")

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # libraries tell of every request
        try:
            main(argv[1:])
        except (ValueError, OSError, storage.StoreError) as error:
            if debug.value:
                raise
            sys.exit(f"error: {_told(error)}")

    app.run(guarded)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror} (--debug shows where)"
    return str(error)


def _define_flag(field: dataclasses.Field, hint: Any) -> None:
    text, default = field.metadata["help"], cast(Any, field.default)
    if typing.get_origin(hint) is typing.Literal:
        flags.DEFINE_enum(field.name, default, typing.get_args(hint), text)
    elif hint is bool:
        flags.DEFINE_bool(field.name, default, text)
    elif hint is int:
        flags.DEFINE_integer(field.name, default, text)
    elif hint is float:
        flags.DEFINE_float(field.name, default, text)
    elif typing.get_origin(hint) is tuple:
        flags.DEFINE_list(field.name, list(default), text)
    else:
        flags.DEFINE_string(field.name, default, text)

"""How a jaxterm command runs: settings from --config, user errors as one line, exit codes.

0: the work is done. 1: a setting, file or checkpoint is wrong. 75: stopped by a signal with
everything saved; run the same command again (EX_TEMPFAIL of sysexits.h).
"""

import difflib
import pathlib
import re
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from jaxterm import config

STOPPED = 75

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "a file of configs/; single settings as --config.data.epochs=1",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder of the run; runs/NAME of the config file unless given"
)
DEBUG = flags.DEFINE_bool("debug", False, "on an error show the traceback too")


def run(main: Callable[[config.TrainConfig, pathlib.Path], int | None]) -> None:
    """Run an entry point: `main(settings, workdir)` returns its exit code, None for 0."""

    def guarded(arguments: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches
        try:
            if arguments[1:]:
                raise ValueError(f"unexpected arguments {arguments[1:]}; options begin with --")
            code = main(config.from_config_dict(CONFIG.value), _workdir())
        except (ValueError, OSError) as error:
            if DEBUG.value:
                raise
            sys.exit(f"error: {_reason(error)}")
        sys.exit(code)

    # --help of the entry point shows the flags that are declared here.
    flags.disclaim_key_flags()
    flags.adopt_module_key_flags(sys.modules[__name__])
    flags.mark_flag_as_required("config")
    app.run(guarded, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    """The arguments that are no flags; ml_collections meets a wrong --config with a traceback."""
    # --flagfile=FILE may hold overrides too.
    faults = _config_faults(flags.FLAGS.read_flags_from_files(arguments[1:], force_gnu=False))
    if faults:
        sys.exit("error: " + "; ".join(faults))
    return app.parse_flags_with_usage(arguments)


def _config_faults(arguments: list[str]) -> list[str]:
    """What is wrong with --config, and with the names of the settings after it."""
    faults = []
    known = config.setting_names()
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            path = (following if match[1] is None else match[1]).split(":")[0]
            if not pathlib.Path(path).is_file():
                faults.append(f"--config={path}: there is no such file; give one of configs/")
        elif match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            if match[1] in known:
                continue
            close = difflib.get_close_matches(match[1], known, 1)
            hint = f"did you mean --config.{close[0]}? " if close else ""
            faults.append(
                f"--config.{match[1]}: unknown setting; {hint}jaxterm/config_sections.py has "
                "them all"
            )
    return faults


def _reason(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _workdir() -> pathlib.Path:
    if WORKDIR.value:
        return pathlib.Path(WORKDIR.value).expanduser().resolve()
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    return pathlib.Path("runs", pathlib.Path(name).stem).resolve()

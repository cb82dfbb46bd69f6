"""How a jaxterm command runs: settings from --config, user errors as one line, exit codes.

0: the work is done. 1: a setting, file or checkpoint is wrong. 75: stopped by a signal with
everything saved; run the same command again (EX_TEMPFAIL of sysexits.h).
"""

import pathlib
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
        except ValueError as error:
            if DEBUG.value:
                raise
            sys.exit(f"error: {error}")
        sys.exit(code)

    # --help of the entry point shows the flags that are declared here.
    flags.disclaim_key_flags()
    flags.adopt_module_key_flags(sys.modules[__name__])
    flags.mark_flag_as_required("config")
    app.run(guarded)


def _workdir() -> pathlib.Path:
    if WORKDIR.value:
        return pathlib.Path(WORKDIR.value).expanduser().resolve()
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    return pathlib.Path("runs", pathlib.Path(name).stem).resolve()

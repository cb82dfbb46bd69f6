"""The pytest that a task's tests run with, for a sandbox whose system has none.

`collect` copies pytest and what it needs, all of it pure Python, from this interpreter's
environment into a folder that every user may read; a sandbox shows it at /opt/verifier.
"""

import importlib.metadata
import pathlib
import shutil
import subprocess

from data_pipeline.sandbox import root_view

INSIDE = "/opt/verifier"
FOLDER_VARIABLE = "DATA_PIPELINE_VERIFIER_PACKAGES"
_NEEDED = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
_IF_THERE = ("exceptiongroup", "tomli", "typing_extensions")  # for a python3 before 3.11 inside
_COMPILED = (".so", ".pyd", ".pyc")


def collect(folder: pathlib.Path) -> pathlib.Path:
    """Copy the packages into `folder`, made where missing; returns it.

    Raises:
        ValueError: a package that this interpreter does not have, or one with compiled code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name in (*_NEEDED, *_IF_THERE):
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as fault:
            if name in _IF_THERE:
                continue
            raise ValueError(
                f"the verifier needs the package {name}, which this interpreter lacks; "
                "install pytest beside data_pipeline (uv sync)"
            ) from fault
        _copy(found, folder)
    _compile(folder)
    return folder


def _compile(folder: pathlib.Path) -> None:
    """Compile for the interpreter inside, which cannot write there and would do it each time."""
    if python := root_view.python():
        how = ["-q", "--invalidation-mode", "unchecked-hash"]
        subprocess.run([python, "-I", "-m", "compileall", *how, str(folder)], check=False)


def _copy(found: importlib.metadata.Distribution, folder: pathlib.Path) -> None:
    """Copy one package's files, readable by everyone."""
    for name in found.files or ():
        if ".." in name.parts or name.suffix == ".pyc" or name.is_absolute():
            continue  # its commands, and what an interpreter made
        if name.suffix in _COMPILED:
            raise ValueError(f"{name} is compiled code, which another python3 cannot load")
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(found.locate_file(name)), target)
        target.chmod(0o644)
        for parent in target.relative_to(folder).parents:
            (folder / parent).chmod(0o755)

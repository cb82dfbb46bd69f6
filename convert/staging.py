"""Output folders that appear when they are complete, and not before."""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def new_folder(
    final: pathlib.Path, *, overwrite: bool, is_replaceable: Callable[[pathlib.Path], bool]
) -> Iterator[pathlib.Path]:
    """Yield a path for the body to make a folder at; it becomes `final` when the body ends.

    All work lies in the sibling `.NAME.convert-partial`. An error removes it; what a kill left is
    removed by the next run.

    Args:
        final: the folder that is to be.
        overwrite: replace a folder that is there already, at the very end.
        is_replaceable: whether that folder is of the kind that may be replaced.

    Raises:
        ValueError: `final` exists and may not be replaced.
    """
    final = pathlib.Path(final).absolute()
    partial = final.with_name(f".{final.name}.convert-partial")
    replaced = final.with_name(f".{final.name}.convert-replaced")
    if replaced.exists() and not final.exists():
        replaced.rename(final)  # a kill fell between the two renames below
    check_free(final, overwrite=overwrite, is_replaceable=is_replaceable)
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial / final.name
        _remove(replaced)
        if final.exists():
            final.rename(replaced)
        (partial / final.name).rename(final)
        _remove(replaced)
    finally:
        _remove(partial)


def check_free(
    final: pathlib.Path, *, overwrite: bool, is_replaceable: Callable[[pathlib.Path], bool]
) -> None:
    """Raise ValueError unless a folder may be made at `final`."""
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{final} exists; give another folder, or --overwrite to replace it")
    if not is_replaceable(final):
        raise ValueError(
            f"{final} exists and is not what this command makes, so --overwrite does not replace "
            "it; give another folder, or remove it yourself"
        )


def check_space(final: pathlib.Path, num_bytes: int) -> None:
    """Raise ValueError when the disk of `final` has less than `num_bytes` free."""
    parent = pathlib.Path(final).absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < num_bytes:
        raise ValueError(
            f"{final} needs {num_bytes / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free; "
            "make room, or give a folder on another disk"
        )


def _remove(folder: pathlib.Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)

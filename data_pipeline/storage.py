"""Where the stages read and write: local folders, or an object store (gs://, s3://).

A local name is an ordinary pathlib.Path and no driver is imported for it. In a store a folder is
what the names of its objects say, so none is made; and an object appears whole or not at all, as a
file does that is renamed into its place. Readers that need a file (ArrayRecord, a memory map) get a
copy in the temporary folder (TMPDIR moves it), which stays there until the system clears it.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from etils.epath import gpath

_DRIVERS = {  # scheme -> package, how to install it
    "gs": ("gcsfs", "uv sync --extra gcs, or pip install 'jaxterm[gcs]'"),
    "s3": ("s3fs", "uv pip install s3fs"),
}
_READ_BYTES = 1 << 20  # read ahead of what Python asks for line by line


class StoreError(Exception):
    """A store does not answer or refuses.

    No OSError, which in a corpus file is damage to report and to go on after.
    """


class StorePath(gpath.PosixGPath):
    """A path in an object store, asked anew each time: other processes write there too."""

    def exists(self) -> bool:
        """Whether there is an object, or a folder of objects."""
        return self._type() != ""

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return self._type() == "directory"

    def is_file(self) -> bool:
        """Whether there is an object."""
        return self._type() == "file"

    def iterdir(self) -> "Iterator[StorePath]":
        """What is in the folder."""
        return iter(sorted(_listed(self)))

    def open(self, mode: str = "r", **_: Any) -> Any:
        """Open to read; `write_through` writes."""
        if mode not in ("r", "rb"):
            raise ValueError(f"{self}: mode={mode!r}; an object is read, or written whole")
        file = io.BufferedReader(_OpenObject(self), _READ_BYTES)
        return file if mode == "rb" else io.TextIOWrapper(file, "utf-8")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object."""
        with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])), _asking(self) as fs:
            fs.rm_file(str(self))

    def resolve(self, strict: bool = False) -> "StorePath":
        """Without `..`."""
        return type(self)(posixpath.normpath("/" + "/".join(self.parts[1:])))

    def _type(self) -> str:
        with contextlib.suppress(FileNotFoundError), _asking(self) as fs:
            return fs.info(str(self))["type"]
        return ""


Path = pathlib.Path | StorePath
PathLike = str | os.PathLike[str]


def as_path(name: PathLike) -> Path:
    """The path of a name.

    Raises:
        ValueError: it is in a store of another kind, or the store's driver is not installed.
    """
    if isinstance(name, Path):
        return name
    scheme, found, rest = os.fspath(name).partition("://")
    if not found:
        return pathlib.Path(name)
    if scheme not in _DRIVERS:
        raise ValueError(f"{name}: name a local path, gs://BUCKET/... or s3://BUCKET/...")
    if not rest.strip("/"):
        raise ValueError(f"{name}: names no bucket; write {scheme}://BUCKET/FOLDER")
    package, way_out = _DRIVERS[scheme]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{name}: needs {package}, which is not installed: {way_out}")
    return StorePath(os.fspath(name))


def size(path: Path) -> int:
    """Bytes of a file."""
    return stamp(path)[0]


def stamp(path: Path) -> tuple[int, int | str]:
    """Bytes of a file, and what changes when it is written again."""
    if isinstance(path, pathlib.Path):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    with _asking(path) as fs:
        info = fs.info(str(path))
    version = next(filter(None, map(info.get, ("generation", "ETag", "etag", "mtime"))), "")
    return info["size"], str(version)


def sizes(paths: Sequence[Path]) -> list[int | None]:
    """Bytes of files of one folder, None of those that are absent; a store is asked once."""
    stored = [path for path in paths if isinstance(path, StorePath)]
    if not stored:
        return [size(path) if path.is_file() else None for path in paths]
    with contextlib.suppress(FileNotFoundError):
        listed = _listed(stored[0].parent)
        return [listed.get(path, {}).get("size") for path in stored]
    return [None] * len(stored)


def entries(folder: Path) -> list[tuple[Path, Literal["folder", "file", "other"]]]:
    """What is in a folder, sorted; a link to a folder is none of both."""
    if not isinstance(folder, pathlib.Path):
        listed = sorted(_listed(folder).items())
        return [(p, "folder" if info["type"] == "directory" else "file") for p, info in listed]
    return [(path, _kind(path)) for path in sorted(folder.iterdir())]


def find(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of these names at any depth, sorted."""
    if isinstance(folder, pathlib.Path):
        return sorted(path for name in names for path in folder.rglob(name))
    with _asking(folder) as fs:
        found = fs.find(str(folder))
    scheme = folder.parts[1]
    paths = [StorePath(f"{scheme}://{name}") for name in found]
    return sorted(path for path in paths if path.name in names)


def for_arrow(path: Path) -> Any:
    """What Arrow reads: a local path, or an opened object (by its name it would use its own)."""
    return path if isinstance(path, pathlib.Path) else path.open("rb")


def local_copy(path: Path) -> pathlib.Path:
    """The file itself where it is local, else a copy, made again when the object has changed."""
    if isinstance(path, pathlib.Path):
        return path
    now = stamp(path)
    key = hashlib.sha256(json.dumps([str(path), *now]).encode()).hexdigest()[:32]
    copy = _copies() / (key + path.suffix)
    if not copy.is_file():
        temporary = _temporary(path)
        try:
            with _asking(path) as fs:
                fs.get_file(str(path), str(temporary))
            if temporary.stat().st_size != now[0]:
                raise StoreError(f"{path}: was written again while it was read; give it again")
            os.replace(temporary, copy)
        finally:
            temporary.unlink(missing_ok=True)
    return copy


@contextlib.contextmanager
def write_through(path: Path) -> Iterator[pathlib.Path]:
    """A local file to write, which is put in its place when it is whole, and dropped on an error.

    Raises:
        StoreError: the store does not take it.
    """
    temporary = temporary_of(path)
    try:
        yield temporary
        put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_of(path: Path) -> pathlib.Path:
    """Where to write what `put` puts in its place: beside it, or in the temporary folder."""
    if isinstance(path, pathlib.Path):
        return path.with_name(path.name + ".tmp")
    return _temporary(path)


def put(temporary: pathlib.Path, path: Path) -> None:
    """Put a file that is whole in its place."""
    if isinstance(path, pathlib.Path):
        os.replace(temporary, path)
        return
    try:
        with _asking(path) as fs:
            fs.put_file(str(temporary), str(path))
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: cannot be written, there is no bucket {path.parts[2]} or it is not yours; "
            "make it, or name another"
        ) from error
    temporary.unlink()


def move(path: Path, target: Path) -> None:
    """Rename a file; in a store it has both names on the way."""
    if isinstance(path, pathlib.Path):
        os.replace(path, target)
        return
    with write_through(target) as temporary:
        temporary.write_bytes(path.read_bytes())
    path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it is in."""
    if isinstance(folder, pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it."""
    if isinstance(folder, pathlib.Path):
        shutil.rmtree(folder)
        return
    with contextlib.suppress(FileNotFoundError), _asking(folder) as fs:
        fs.rm(str(folder), recursive=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing; leave any other."""
    if isinstance(folder, pathlib.Path) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def relative(path: Path, start: Path) -> str:
    """How to find `path` from the folder `start`; as a whole where they are in different stores."""
    path, start = path.resolve(), start.resolve()
    buckets = [None if isinstance(p, pathlib.Path) else p.parts[:3] for p in (path, start)]
    if buckets[0] != buckets[1]:
        return str(path)
    return os.path.relpath(*("/" + "/".join(p.parts[1:]) for p in (path, start)))


def join(folder: Path, where: str) -> Path:
    """The path that `relative` told."""
    if isinstance(folder, pathlib.Path) or "://" in where or where.startswith("/"):
        return as_path(where) if "://" in where else pathlib.Path(folder, where)
    return (folder / where).resolve()


def _kind(path: pathlib.Path) -> Literal["folder", "file", "other"]:
    if path.is_dir():
        return "other" if path.is_symlink() else "folder"
    return "file" if path.is_file() else "other"


class _OpenObject(io.RawIOBase):
    """An object that is read; whatever goes wrong on the way is a StoreError."""

    def __init__(self, path: StorePath):
        self._path = path
        with _asking(path) as fs:
            self._file = fs.open(str(path), "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _asking(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _file_system(path: StorePath) -> Any:
    import fsspec

    return fsspec.filesystem(path.parts[1], use_listings_cache=False)


@contextlib.contextmanager
def _asking(path: StorePath) -> Iterator[Any]:
    """The store of a path; FileNotFoundError stays what it is, other errors become StoreError."""
    try:
        yield _file_system(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # each driver has its own
        raise StoreError(
            f"{path}: the store refuses or does not answer ({error}); see to the network and to "
            "your rights there: the same command goes on where it was"
        ) from error


def _listed(folder: StorePath) -> dict[StorePath, dict[str, Any]]:
    with _asking(folder) as fs:
        found = fs.ls(str(folder), detail=True)
    names = [(posixpath.basename(info["name"].rstrip("/")), info) for info in found]
    own = str(folder).partition("://")[2]  # the object `folder/`, which some tools leave
    return {folder / name: info for name, info in names if info["name"].rstrip("/") != own}


def _copies() -> pathlib.Path:
    folder = pathlib.Path(tempfile.gettempdir()) / f"jaxterm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
        raise OSError(f"{folder}: belongs to somebody else; set TMPDIR to another folder")
    return folder


def _temporary(path: StorePath) -> pathlib.Path:
    """A new file; its suffix tells the store the kind of content."""
    file, name = tempfile.mkstemp(dir=_copies(), suffix=path.suffix)
    os.close(file)
    return pathlib.Path(name)

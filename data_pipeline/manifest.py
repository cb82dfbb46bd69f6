"""manifest.json: what made a folder. It is written last, so its presence says the folder is whole.

While a stage works, `unfinished.json` holds what it was asked; a stage that is run again finds
there whether it may go on. Neither file holds times or paths, so equal runs leave equal bytes.

What `overwrite` replaces waits as `.NAME.replaced` beside the folder until the new output is whole:
it comes back where the new input turns out to be bad, and a kill leaves it there. In an object
store, where a folder cannot be renamed, nothing is replaced.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipeline import storage

FILE = "manifest.json"
_UNFINISHED = "unfinished.json"
_DIGESTS = ".digests.json"
_OF_A_START = (_DIGESTS, _DIGESTS + ".tmp", _UNFINISHED + ".tmp")  # all that a kill may leave then
_OF_OTHERS = ("tasks", "trials")  # folders of taskgen and rollout
_PACKAGES = ("numpy", "pyarrow", "tokenizers", "transformers", "jinja2", "array-record")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of a stage: what it reads, what it was told, where it writes."""

    name: str
    output_dir: storage.Path
    inputs: Mapping[str, str]  # name -> SHA-256
    options: Mapping[str, Any]

    def identity(self) -> dict[str, Any]:
        """What must be equal for two runs to leave equal output."""
        return {"stage": self.name, "inputs": dict(self.inputs), "options": dict(self.options)}


def options_of(options: Any) -> dict[str, Any]:
    """The settings of a dataclass that change the output (not, say, the number of workers)."""
    return {
        field.name: _as_json(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if field.metadata.get("changes_output", True)
    }


def begin(stage: Stage, *, overwrite: bool = False) -> bool:
    """Make the output folder ready.

    Returns:
        True where the folder already holds this very output.

    Raises:
        ValueError: it holds something else.
    """
    folder = stage.output_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output={folder} is a file; name a folder")
    _settle_replaced(folder)
    for name in (FILE, _UNFINISHED):
        if not (folder / name).exists():
            continue
        found = read_json(folder / name)
        differences = _differences(found, stage.identity())
        if not differences:
            _remove_temporaries(folder)
            if name == FILE:  # a kill may have left both
                (folder / _UNFINISHED).unlink(missing_ok=True)
            return name == FILE
        if not overwrite or found.get("stage") != stage.name:
            raise ValueError(
                f"--output={folder} holds the output of `{found.get('stage')}` made with other "
                f"settings: {'; '.join(differences)}; choose another folder"
                + (" or add --overwrite" if found.get("stage") == stage.name else "")
            )
        _set_aside(folder)
        break
    if folder.is_dir() and any(p.name not in _OF_A_START for p in folder.iterdir()):
        raise ValueError(
            f"--output={folder} is not empty and holds no output of `{stage.name}`; "
            "choose another folder"
        )
    storage.make_folder(folder.resolve())
    write_json(folder / _UNFINISHED, stage.identity())
    return False


def complete(stage: Stage, counts: Mapping[str, Any]) -> None:
    """Write the manifest: the folder is whole."""
    versions = {name: _version(name) for name in _PACKAGES}
    write_json(
        stage.output_dir / FILE,
        stage.identity() | {"counts": dict(counts), "versions": versions},
    )
    (stage.output_dir / _UNFINISHED).unlink()
    _settle_replaced(stage.output_dir)


@contextlib.contextmanager
def discard_on_error(stage: Stage) -> Iterator[None]:
    """Where the input or a setting turns out to be bad, remove what was written for it.

    What it was to replace comes back. After a kill the folder stays, and the same command goes on
    in it.
    """
    try:
        yield
    except ValueError:
        _remove(stage.output_dir)
        _settle_replaced(stage.output_dir)
        raise


def discard(folder: storage.Path, *, stage: str) -> None:
    """Remove a folder that holds output of `stage`, finished or not; leave any other."""
    for name in (FILE, _UNFINISHED):
        if (folder / name).exists() and read_json(folder / name).get("stage") == stage:
            _remove(folder)
            return


def read(folder: storage.Path, *, stage: str) -> dict[str, Any]:
    """The manifest of a finished stage.

    Raises:
        ValueError: the folder is not the finished output of `stage`.
    """
    path = folder / FILE
    if not path.is_file():
        state = "is unfinished" if (folder / _UNFINISHED).exists() else "is not there"
        raise ValueError(
            f"{folder}: the output of data_pipeline.{stage} {state} (no {FILE}); run it first"
        )
    found = read_json(path)
    if found.get("stage") != stage:
        raise ValueError(
            f"{path}: this is the output of data_pipeline.{found.get('stage')}, not of {stage}"
        )
    return found


def stage_of(folder: storage.Path) -> str:
    """The stage whose finished output a folder holds; empty where it holds none.

    Raises:
        ValueError: the output is unfinished.
    """
    if made := _stage_in(folder / FILE):
        return made
    if begun := _stage_in(folder / _UNFINISHED):
        raise ValueError(
            f"{folder}: the output of data_pipeline.{begun} is unfinished; give its command again, "
            "or remove the folder"
        )
    return ""


def digest_files(
    paths: Sequence[storage.Path], *, cache_dir: storage.Path | None = None
) -> dict[str, str]:
    """SHA-256 of each file, under its number and name.

    With `cache_dir` a file whose size and time have not changed since it was hashed for that
    folder is not read again.
    """
    cache_file = cache_dir / _DIGESTS if cache_dir else None
    cache = read_json(cache_file) if cache_file and cache_file.exists() else {}
    seen, digests = {}, {}
    for number, path in enumerate(paths):
        stamp, key = list(storage.stamp(path)), str(path.resolve())
        known = cache.get(key)
        digest = known[2] if known and known[:2] == stamp else _digest(path)
        seen[key] = [*stamp, digest]
        digests[f"{number}:{path.name}"] = digest
    if cache_file and any(cache.get(key) != seen[key] for key in seen):
        _write_cache(cache_file, cache | seen)
    return digests


def _write_cache(path: storage.Path, cache: Mapping[str, Any]) -> None:
    folder = path.parent
    if not folder.exists() or any((folder / name).exists() for name in (FILE, _UNFINISHED)):
        storage.make_folder(folder)  # not into a folder that is not ours
        write_json(path, cache)


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: storage.Path) -> dict[str, Any]:
    """A JSON object of ours; ValueError naming the file where it is damaged."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); remove it and run the stage again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged (not an object); remove it and run the stage again")
    return value


def write_json(path: storage.Path, value: Any) -> None:
    """Write JSON atomically."""
    with storage.write_through(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", "utf-8")


def _digest(path: storage.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _temporaries(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Half-written files of ours; what tasks and their trials hold is named by others."""
    for place, folders, names in folder.walk():
        folders[:] = [name for name in folders if name not in _OF_OTHERS]
        yield from (place / name for name in names if name.endswith(".tmp"))


def _remove_temporaries(folder: storage.Path) -> None:
    if isinstance(folder, pathlib.Path):
        for path in _temporaries(folder):  # of a run that was killed
            path.unlink()


def _stage_in(path: storage.Path) -> str:
    """The stage that a manifest is of; empty where the file is absent or not one of ours."""
    try:
        found = read_json(path)
    except (ValueError, FileNotFoundError):
        return ""
    return found.get("stage", "") if "inputs" in found and "options" in found else ""


def _replaced(folder: pathlib.Path) -> pathlib.Path:
    real = folder.resolve()
    return real.with_name(f".{real.name}.replaced")


def _set_aside(folder: storage.Path) -> None:
    if not isinstance(folder, pathlib.Path):
        raise ValueError(
            f"--overwrite: --output={folder} is in an object store, where what is there cannot be "
            "set aside until the new output is whole; remove it first, or choose another folder"
        )
    if folder.samefile("."):
        raise ValueError(
            f"--output={folder} is the working folder, which cannot be replaced; give the command "
            "in another one"
        )
    if _replaced(folder).exists():  # what stands here was itself to replace it, and was not whole
        _remove(folder)
    else:
        folder.resolve().rename(_replaced(folder))


def _settle_replaced(folder: storage.Path) -> None:
    """What was set aside goes when the new output is whole, and comes back when none is begun."""
    if not isinstance(folder, pathlib.Path):
        return
    replaced = _replaced(folder)
    if not replaced.exists():
        return
    if (folder / FILE).exists():
        shutil.rmtree(replaced)
    elif not (folder / _UNFINISHED).exists():
        _remove(folder)
        replaced.rename(folder.resolve())


def _remove(folder: storage.Path) -> None:
    """Remove a folder; a kill on the way leaves it known as ours, and as unfinished."""
    if not folder.exists():
        return
    if (folder / FILE).exists():
        storage.move(folder / FILE, folder / _UNFINISHED)
    for path, kind in storage.entries(folder):
        if kind == "folder":
            storage.remove_tree(path)
        elif path.name != _UNFINISHED:
            path.unlink()
    storage.remove_tree(folder.resolve())


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    if found.get("stage") != asked["stage"]:
        return [f"stage {found.get('stage')!r}, now {asked['stage']!r}"]
    old, new = found.get("options", {}), asked["options"]
    differences = [
        f"{name}={old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    changed = sorted(dict(found.get("inputs", {}).items() ^ asked["inputs"].items()))
    if changed:
        differences.append("other inputs: " + ", ".join(changed[:5]))
    return differences

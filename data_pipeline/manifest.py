"""manifest.json: what made a folder. It is written last, so its presence says the folder is whole.

While a stage works, `unfinished.json` holds what it was asked; a stage that is run again finds
there whether it may go on. Neither file holds times or paths, so equal runs leave equal bytes.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FILE = "manifest.json"
_UNFINISHED = "unfinished.json"
_DIGESTS = ".digests.json"
_PACKAGES = ("numpy", "pyarrow", "tokenizers", "transformers", "jinja2", "array-record")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of a stage: what it reads, what it was told, where it writes."""

    name: str
    output_dir: pathlib.Path
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
    for name in (FILE, _UNFINISHED):
        if not (folder / name).exists():
            continue
        found = read_json(folder / name)
        differences = _differences(found, stage.identity())
        if not differences:
            _remove_temporaries(folder)
            return name == FILE
        if not overwrite or found.get("stage") != stage.name:
            raise ValueError(
                f"--output={folder} holds the output of `{found.get('stage')}` made with other "
                f"settings: {'; '.join(differences)}; choose another folder"
                + (" or add --overwrite" if found.get("stage") == stage.name else "")
            )
        shutil.rmtree(folder)
        break
    if folder.is_dir() and any(p.name != _DIGESTS for p in folder.iterdir()):
        raise ValueError(
            f"--output={folder} is not empty and holds no output of `{stage.name}`; "
            "choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
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


@contextlib.contextmanager
def discard_on_error(stage: Stage) -> Iterator[None]:
    """Where the input or a setting turns out to be bad, remove what was written for it.

    After a kill the folder stays, and the same command goes on in it.
    """
    try:
        yield
    except ValueError:
        shutil.rmtree(stage.output_dir)
        raise


def read(folder: pathlib.Path, *, stage: str) -> dict[str, Any]:
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


def digest_files(
    paths: Sequence[pathlib.Path], *, cache_dir: pathlib.Path | None = None
) -> dict[str, str]:
    """SHA-256 of each file, under its number and name.

    With `cache_dir` a file whose size and time have not changed since it was hashed for that
    folder is not read again.
    """
    cache_file = cache_dir / _DIGESTS if cache_dir else None
    cache = read_json(cache_file) if cache_file and cache_file.exists() else {}
    seen, digests = {}, {}
    for number, path in enumerate(paths):
        status, key = path.stat(), str(path.resolve())
        stamp = [status.st_size, status.st_mtime_ns]
        known = cache.get(key)
        digest = known[2] if known and known[:2] == stamp else _digest(path)
        seen[key] = [*stamp, digest]
        digests[f"{number}:{path.name}"] = digest
    if cache_file and any(cache.get(key) != seen[key] for key in seen):
        _write_cache(cache_file, cache | seen)
    return digests


def _write_cache(path: pathlib.Path, cache: Mapping[str, Any]) -> None:
    folder = path.parent
    if not folder.exists() or any((folder / name).exists() for name in (FILE, _UNFINISHED)):
        folder.mkdir(parents=True, exist_ok=True)  # not into a folder that is not ours
        write_json(path, cache)


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of ours; ValueError naming the file where it is damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); remove it and run the stage again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged (not an object); remove it and run the stage again")
    return value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", "utf-8")
    os.replace(temporary, path)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _remove_temporaries(folder: pathlib.Path) -> None:
    for path in folder.rglob("*.tmp"):  # of a run that was killed
        path.unlink()


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

"""What a run starts from: the base model's folder, checked before any work, and its checkpoint.

    WORKDIR/start/hf          with start.random: a Hugging Face folder with random weights
    WORKDIR/start/checkpoint  the Hugging Face folder's weights, converted

Beside each lies NAME.json, which says what it was made from: it is kept for a run that starts from
the same, and refused for another.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from convert import hf_metadata, hf_source, hf_to_orbax, random_hf, tokenizer_files
from data_pipeline import embedded
from jaxterm import architecture, config, distributed

# Settings of the model that are the run's own, or compared by a rule of their own.
_FREE_FIELDS = ("rope_scaling", "max_positions", "vocab_multiple")
_SAMPLE_BYTES = 1 << 16


def hf_folder(run: config.TrainConfig, workdir: pathlib.Path) -> pathlib.Path:
    """The base model's Hugging Face folder, made if it is a random one.

    Raises:
        ValueError: it is not the model of the config, has faults, or could not be exported again.
    """
    if bool(run.start.hf_dir) == run.start.random:
        raise ValueError(
            f"config.start.hf_dir={run.start.hf_dir!r} and config.start.random={run.start.random}: "
            "a run starts from one of the two; set --config.start.hf_dir to the folder of the base "
            "model (config.json, safetensors, tokenizer)"
        )
    folder = workdir / "start" / "hf" if run.start.random else pathlib.Path(run.start.hf_dir)
    if run.start.random:
        distributed.once("random start", lambda: _make_random(run, folder))
    distributed.once("check start", lambda: _check(run, folder))
    return folder


def checkpoint_folder(
    run: config.TrainConfig, workdir: pathlib.Path, hf_dir: pathlib.Path
) -> pathlib.Path:
    """The CHECKPOINT_DIR that a fresh run starts from, converted if need be."""
    if run.start.checkpoint_dir:
        return pathlib.Path(run.start.checkpoint_dir)
    folder = workdir / "start" / "checkpoint"

    def convert() -> None:
        made_from = {"files": _fingerprints(hf_dir), "vocab_multiple": run.model.vocab_multiple}
        if not _is_made(folder, made_from):
            hf_to_orbax.convert(hf_dir, folder, vocab_multiple=run.model.vocab_multiple)

    distributed.once("start checkpoint", convert)
    return folder


def _make_random(run: config.TrainConfig, folder: pathlib.Path) -> None:
    made_from = {"seed": run.seed, "model": config.to_json_dict(run.model)}
    if not _is_made(folder, made_from):
        tokenizer_dir = run.start.tokenizer_dir or embedded.tokenizer_dir()
        random_hf.make_random_hf_folder(run.model, tokenizer_dir, folder, seed=run.seed)


def _check(run: config.TrainConfig, hf_dir: pathlib.Path) -> None:
    """Find now what would otherwise stop the run at its first step, or after its last."""
    _check_architecture(run.model, hf_dir)
    tokenizer = tokenizer_files.Tokenizer(hf_dir)
    tokenizer.check_vocabulary(run.model.vocab_size)
    if not run.start.checkpoint_dir:
        hf_source.HfSource(hf_dir)
    if run.export.enabled:
        try:
            hf_metadata.files(
                hf_dir, run.model, tokenizer, dtype=run.export.dtype, eos=run.export.eos
            )
        except ValueError as error:
            raise ValueError(
                f"the run could not be exported: {error} (here --config.export.eos)"
            ) from error


def _check_architecture(model: architecture.ModelConfig, hf_dir: pathlib.Path) -> None:
    found = architecture.from_hf_folder(hf_dir)
    differing = [
        field.name
        for field in dataclasses.fields(architecture.ModelConfig)
        if field.name not in _FREE_FIELDS
        and getattr(found, field.name) != getattr(model, field.name)
    ]
    # A run may stretch the context, not shrink it or drop the scaling the weights know.
    if found.rope_scaling.kind != "none" and found.rope_scaling != model.rope_scaling:
        differing.append("rope_scaling")
    if found.max_positions > model.max_positions:
        differing.append("max_positions")
    if differing:
        faults = [
            f"{name} is {getattr(found, name)} there and {getattr(model, name)} in "
            f"config.model.{name}"
            for name in differing
        ]
        raise ValueError(
            f"{hf_dir / 'config.json'} is another model than the config: {'; '.join(faults)}; "
            "choose the configs/ file of that model, or set those values"
        )


def _is_made(folder: pathlib.Path, made_from: dict[str, Any]) -> bool:
    """Whether `folder` is there, made from this; if not, note what it is about to be made from.

    Raises:
        ValueError: it was made from something else.
    """
    record = folder.with_name(folder.name + ".json")
    if folder.exists():
        known = json.loads(record.read_text()) if record.exists() else None
        if known != made_from:
            raise ValueError(
                f"{folder} was made from another start (see {record.name}) than config.start, "
                "config.seed and config.model now say; use another --workdir, or remove "
                f"{folder.parent}"
            )
        return True
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_name(record.name + ".tmp")
    temporary.write_text(json.dumps(made_from, indent=2) + "\n")
    os.replace(temporary, record)
    return False


def _fingerprints(hf_dir: pathlib.Path) -> dict[str, str]:
    """Of config.json and each weight file: a digest of its size and of samples all through it."""
    files = [hf_dir / "config.json", *sorted(hf_dir.glob("*.safetensors"))]
    return {file.name: _fingerprint(file) for file in files}


def _fingerprint(path: pathlib.Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for sixteenth in range(16):
            file.seek(size * sixteenth // 16)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()

"""The Hugging Face folder that a finished run leaves: WORKDIR/hf, checked against its checkpoint.

WORKDIR/export.json says of which step it is and how it was written. It is there only while hf/ is
whole and checked, so an export that was interrupted, or is of another step, is made again.
"""

import json
import os
import pathlib
import shutil

from convert import orbax_to_hf, verify
from jaxterm import config

_RECORD = "export.json"


def make(
    settings: config.ExportConfig,
    workdir: pathlib.Path,
    step_dir: pathlib.Path,
    *,
    reference: pathlib.Path,
) -> pathlib.Path:
    """Export the checkpoint in `step_dir`, unless that is done; returns the folder.

    Raises:
        ValueError: the reference does not fit.
        RuntimeError: what was written is not what the checkpoint holds; nothing is left of it.
    """
    hf_dir, record = workdir / "hf", workdir / _RECORD
    wanted = {"step": step_dir.name} | config.to_json_dict(settings)
    if hf_dir.exists() and record.exists() and json.loads(record.read_text()) == wanted:
        return hf_dir
    record.unlink(missing_ok=True)
    orbax_to_hf.convert(
        step_dir, hf_dir, reference=reference, dtype=settings.dtype, eos=settings.eos,
        max_shard_gb=settings.max_shard_gb, overwrite=hf_dir.exists(),
    )  # fmt: skip
    if not verify.compare(step_dir, hf_dir).is_equal:
        shutil.rmtree(hf_dir)
        raise RuntimeError(
            f"{hf_dir} was not the model in {step_dir} and is removed; is the disk sound? The same "
            "command exports again"
        )
    temporary = record.with_name(_RECORD + ".tmp")
    temporary.write_text(json.dumps(wanted, indent=2) + "\n")
    os.replace(temporary, record)
    return hf_dir

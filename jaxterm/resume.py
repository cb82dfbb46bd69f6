"""Whether a run may go on from its checkpoint with these settings.

The plan and the schedule are the run: what decides a batch, an update or a shape stays as it was.
Where the run lies on devices, what it logs and how it exports may change.
"""

import json
import pathlib
from typing import Any

from jaxterm import checkpoint, config

# Settings that may differ on a resume, by the beginnings of their names.
_FREE = (
    "start.", "compute.", "mesh.", "data.", "log.", "export.", "optimizer.num_micro_batches",
    "optimizer.state_memory",
)  # fmt: skip
_FIXED = ("compute.param_dtype",)  # ... but not these; of data, the plan's hash decides


def refuse_changes(run: config.TrainConfig, step_dir: pathlib.Path, plan_hash: str) -> None:
    """ValueError naming every setting that the checkpoint in `step_dir` has otherwise.

    Settings that only one version of this program knows are not compared, unless it is known what
    a version without them did.
    """
    done = checkpoint.load_progress(step_dir)
    stored = json.loads((step_dir / "config" / checkpoint.CONFIG_FILE).read_text())["run"]
    old, new = _flat(stored), _flat(config.to_json_dict(run))
    # Before there were these settings, moments had the dtype of their parameters.
    old = {
        "optimizer.name": "adamw",
        "optimizer.schedule": "cosine",
        "lora.rank": 0,
        "optimizer.moment_dtype": old["compute.param_dtype"],
    } | old
    faults = [
        f"config.{name} is {old[name]!r} there, now {new[name]!r}"
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name] and not _is_free(name)
    ]
    if done.plan_hash != plan_hash:
        changed = [x for x in old.keys() & new.keys() if x.startswith("data.") and old[x] != new[x]]
        faults.append(
            f"its rows are those of plan {done.plan_hash[:12]}, now {plan_hash[:12]}"
            + (f" (config.{', config.'.join(sorted(changed))} changed)" if changed else "")
        )
    if faults:
        raise ValueError(
            f"{step_dir} cannot be gone on from: {'; '.join(faults)}; use the settings it was made "
            "with, or another --workdir"
        )


def _is_free(name: str) -> bool:
    return name.startswith(_FREE) and not name.startswith(_FIXED)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; lists as tuples, as JSON does not tell them apart."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat

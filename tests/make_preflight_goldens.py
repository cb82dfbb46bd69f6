"""Compile every config for every pod that it has settings for, into tests/goldens/preflight.json.

    uv run --extra tpu python tests/make_preflight_goldens.py [--again]

Some minutes each on two cores; what is there for the same settings is kept, --again compiles all.
"""

import importlib.util
import json
import pathlib
import sys
from collections.abc import Iterator

from jaxterm import config
from jaxterm.preflight import analysis, compiled_step

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATH = ROOT / "tests" / "goldens" / "preflight.json"
KEPT = (
    "topology", "num_devices", "mesh", "fits", "capacity_bytes", "peak_bytes", "memory",
    "collectives", "collective_bytes", "step_flops", "model_flops", "recompute_share",
    "step_seconds", "mfu_bound", "settings", "versions",
)  # fmt: skip


def published() -> Iterator[tuple[str, config.TrainConfig, str]]:
    """Name, settings and topology of every pod in configs/."""
    for path in sorted((ROOT / "configs").rglob("*.py")):
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for pod in getattr(module, "PODS", ()):
            yield f"{path.stem} {pod}", config.from_config_dict(module.get_config(pod)), pod
        for length in getattr(module, "LENGTHS", ()):
            run = config.from_config_dict(module.get_config(length))
            yield f"{path.stem} {length}", run, module.POD


def settings_of(run: config.TrainConfig) -> dict:
    """As they are in JSON: lists for tuples."""
    return json.loads(json.dumps(config.to_json_dict(run)))


def was_compiled_for(recorded: dict, run: config.TrainConfig) -> bool:
    """Whether recorded settings are the run's; ones that came since are at their defaults."""
    now, default = settings_of(run), settings_of(config.TrainConfig(model=run.model))
    for section, values in now.items():
        if not isinstance(values, dict):
            if recorded.get(section, default[section]) != values:
                return False
            continue
        known = default[section] | recorded.get(section, {})
        if known != values:
            return False
    return True


def compile_one(run: config.TrainConfig, topology: str) -> dict:
    found = analysis.as_json(analysis.analyse(compiled_step.compile_step(run, topology)))
    return {name: found[name] for name in KEPT}


def main() -> None:
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    again = "--again" in sys.argv
    for name, run, topology in published():
        if not again and name in known and was_compiled_for(known[name]["settings"], run):
            continue
        try:
            known[name] = compile_one(run, topology)
        except compiled_step.DoesNotFitError as error:
            print(f"{name}: {error}", flush=True)
            known.pop(name, None)
        else:
            peak, share = known[name]["peak_bytes"] / 1e9, known[name]["recompute_share"]
            print(f"{name}: {peak:.1f} GB, {share:.3f}", flush=True)
        PATH.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

"""Tries settings for a pod, and ranks those that fit by the estimated time of a step.

Each is compiled in full, one after another; with a folder every result is kept there, and the same
search goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import rich.console

from jaxterm import config
from jaxterm.preflight import analysis, chips, compiled_step

MAX_HBM_SHARE = 0.9  # what is left is for what the compiler does not see: fragments, other programs

# From the least recomputed to the least memory: policy, tensors kept beside it, tensors offloaded.
_MEMORY_PLANS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("dots", (), ()),
    ("projections", ("gate",), ()),
    ("projections", (), ("gate", "up")),
    ("projections", (), ()),
    ("attention", (), ()),
    ("full", (), ()),
    ("full", (), ("stream",)),
)
_MLP_CHUNKS = 4


@dataclasses.dataclass(frozen=True)
class Tried:
    """One set of settings, and what became of it."""

    label: str
    flags: tuple[str, ...]  # that give these settings on a command line
    found: analysis.Preflight | None
    fault: str  # why there is nothing found

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better: those that leave room first, by their estimated step."""
        if self.found is None:
            return True, float("inf")
        room = self.found.peak_bytes <= MAX_HBM_SHARE * self.found.capacity_bytes
        return not room, self.found.step_seconds


def run(
    base: config.TrainConfig,
    topology: str,
    *,
    console: rich.console.Console,
    folder: pathlib.Path | None = None,
) -> list[Tried]:
    """Compile candidates; the best first.

    For each mesh, memory plans are tried from the least recomputed on, until one leaves room: those
    after it would only compute more again.
    """
    tried = []
    for mesh in candidate_meshes(base, topology):
        for plan in _MEMORY_PLANS:
            one = _try(base, topology, mesh, plan, console, folder)
            tried.append(one)
            if not one.rank[0]:
                break
    return sorted(tried, key=lambda each: each.rank)


def candidate_meshes(base: config.TrainConfig, topology: str) -> Iterator[dict[str, int]]:
    """Mesh axes and micro-batches that the model's dims allow: rows over all devices, or several
    devices for a row."""
    num_devices = len(chips.devices_of(topology))
    rows = base.data.global_batch_size
    for context in (1, 2, 4, 8):
        for tensor in (1, 2, 4):
            shards, rest = divmod(num_devices, context * tensor)
            if rest or shards == 0 or rows % shards:
                continue
            if context * tensor > 1 and context > 1 < tensor:
                continue  # both cut a row's work already
            mesh = {
                "fsdp": shards,
                "context": context,
                "tensor": tensor,
                "num_micro_batches": rows // shards,
            }
            try:
                config.validate_on_devices(_settings(base, mesh, _MEMORY_PLANS[0]), num_devices)
            except ValueError:
                continue
            yield mesh


def _try(
    base: config.TrainConfig,
    topology: str,
    mesh: dict[str, int],
    plan: tuple[str, tuple[str, ...], tuple[str, ...]],
    console: rich.console.Console,
    folder: pathlib.Path | None,
) -> Tried:
    settings = _settings(base, mesh, plan)
    flags = tuple(_flags(mesh, plan))
    label = " ".join(flag.removeprefix("--config.") for flag in flags)
    kept = folder / f"{_digest(settings, topology)}.json" if folder else None
    if kept and kept.exists():
        values = json.loads(kept.read_text())
        found = analysis.Preflight(**values["found"]) if values["found"] else None
        return Tried(label, flags, found, values["fault"])
    found, fault = None, ""
    with console.status(label):
        try:
            found = analysis.analyse(compiled_step.compile_step(settings, topology))
        except compiled_step.DoesNotFitError:
            fault = "does not fit"
        except ValueError as error:
            fault = str(error)
    console.print(f"{label}: {f'{found.peak_bytes / 1e9:.1f} GB' if found else fault}")
    if kept:
        _keep(kept, {"found": analysis.as_json(found) if found else None, "fault": fault})
    return Tried(label, flags, found, fault)


def _settings(
    base: config.TrainConfig,
    mesh: dict[str, int],
    plan: tuple[str, tuple[str, ...], tuple[str, ...]],
) -> config.TrainConfig:
    policy, keep, offload = plan
    axes = {name: mesh[name] for name in ("fsdp", "context", "tensor")}
    return dataclasses.replace(
        base,
        mesh=dataclasses.replace(base.mesh, data=1, num_slices=1, **axes),
        compute=dataclasses.replace(
            base.compute,
            remat=policy,
            remat_keep=keep,
            remat_offload=offload,
            mlp_chunks=_MLP_CHUNKS,
        ),
        optimizer=dataclasses.replace(base.optimizer, num_micro_batches=mesh["num_micro_batches"]),
    )


def _flags(
    mesh: dict[str, int], plan: tuple[str, tuple[str, ...], tuple[str, ...]]
) -> Iterator[str]:
    policy, keep, offload = plan
    for axis in ("fsdp", "context", "tensor"):
        if mesh[axis] > 1 or axis == "fsdp":
            yield f"--config.mesh.{axis}={mesh[axis]}"
    yield f"--config.optimizer.num_micro_batches={mesh['num_micro_batches']}"
    yield f"--config.compute.remat={policy}"
    if keep:
        yield f"--config.compute.remat_keep={','.join(keep)}"
    if offload:
        yield f"--config.compute.remat_offload={','.join(offload)}"
    yield f"--config.compute.mlp_chunks={_MLP_CHUNKS}"


def _digest(settings: config.TrainConfig, topology: str) -> str:
    told = json.dumps([config.to_json_dict(settings), topology], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _keep(path: pathlib.Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values) + "\n")
    os.replace(temporary, path)

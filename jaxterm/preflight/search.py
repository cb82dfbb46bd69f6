"""Tries settings for a pod, and ranks those that fit by the estimated time of a step.

Each is compiled in full, one after another, some minutes each; so what cannot win is left out. With
a folder every result is kept there, and the same search goes on where it stopped.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import rich.console

from jaxterm import config
from jaxterm.preflight import analysis, chips, compiled_step, memory_plans
from jaxterm.preflight.memory_plans import MEMORY_PLANS, MemoryPlan

MAX_SHARE = 0.9  # of memory; what is left is for what the compiler does not see: other programs
_MIN_GAIN = 0.02  # of a step's time, for which it is worth to compile once more
# Times what a step takes by the peaks where several devices share a row: their shares of the
# attention of packed rows are less even than whole rows (benchmarks/context_balance.py).
_UNEVENNESS = {1: 1.0, 2: 1.03, 4: 1.06, 8: 1.07}
_MIN_SHARD_TOKENS = 8192  # of a row: with shorter ones latency counts, which no peak tells of


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How a pod shares a step's rows and weights."""

    fsdp: int
    context: int
    tensor: int
    num_micro_batches: int
    rows_at_a_time: int  # of one shard of the batch

    @property
    def unevenness(self) -> float:
        """Times what a step takes by the peaks."""
        return _UNEVENNESS[self.context]


@dataclasses.dataclass(frozen=True)
class Tried:
    """One set of settings, and what became of it."""

    label: str
    mesh: Mesh
    plan: MemoryPlan
    flags: tuple[str, ...]  # that give these settings on a command line
    found: analysis.Preflight | None
    fault: str  # why there is nothing found

    @property
    def has_room(self) -> bool:
        """Whether it fits, and leaves what the compiler does not see its part."""
        return (
            self.found is not None
            and self.found.peak_bytes <= MAX_SHARE * self.found.capacity_bytes
            and self.found.host_bytes <= MAX_SHARE * self.found.host_capacity_bytes
        )

    @property
    def is_bound_by_links(self) -> bool:
        """Whether the collectives take longer than the computing."""
        found = self.found
        return found is not None and found.collective_seconds > found.compute_seconds

    @property
    def seconds(self) -> float:
        """Of a step, estimated; infinite where there is nothing found.

        Collectives run beside computing, but for those of `tensor`: they carry what the next
        product waits for.
        """
        if self.found is None:
            return math.inf
        exposed = self.found.collective_seconds if self.mesh.tensor > 1 else 0.0
        return (self.found.step_seconds + exposed) * self.mesh.unevenness

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better: those that leave room first, by their estimated step."""
        return not self.has_room, self.seconds


def run(
    base: config.TrainConfig,
    topology: str,
    *,
    console: rich.console.Console,
    folder: pathlib.Path | None = None,
) -> list[Tried]:
    """Compile candidates; the best first."""

    def compile_one(mesh: Mesh, plan: MemoryPlan) -> Tried:
        return _try(base, topology, mesh, plan, console, folder)

    chip, num_devices = chips.chip_of(topology), len(chips.devices_of(topology))

    def least_seconds(mesh: Mesh, plan: MemoryPlan) -> float:
        passes_s = memory_plans.least_seconds(base, plan, chip, num_devices)
        waits_s = memory_plans.tensor_seconds(base, mesh.tensor, chip, num_devices)
        return (passes_s + waits_s) * mesh.unevenness

    return explore(list(candidate_meshes(base, topology)), compile_one, least_seconds)


def explore(
    meshes: list[Mesh],
    compile_one: Callable[[Mesh, MemoryPlan], Tried],
    least_seconds: Callable[[Mesh, MemoryPlan], float],
) -> list[Tried]:
    """What was tried, the best first.

    On a mesh the plan wanted is the first that leaves room, since those after it keep less; it is
    found by halving. Then what keeps more, but on the host. A plan is left out where it cannot beat
    the best step known, on whatever mesh.
    """
    tried: list[Tried] = []

    def seconds_to_beat() -> float:
        return min((each.seconds for each in tried if each.has_room), default=math.inf)

    def can_win(mesh: Mesh, plan: MemoryPlan) -> bool:
        return least_seconds(mesh, plan) < (1 - _MIN_GAIN) * seconds_to_beat()

    def has_room(mesh: Mesh, plan: MemoryPlan) -> bool:
        tried.append(compile_one(mesh, plan))
        return tried[-1].has_room

    def leaves_room(mesh: Mesh, plan: MemoryPlan) -> bool:
        """Where it cannot win nothing after it can, so what is wanted lies before it."""
        return not can_win(mesh, plan) or has_room(mesh, plan)

    for mesh in meshes:
        best = min((each for each in tried if each.has_room), key=lambda t: t.rank, default=None)
        if mesh.rows_at_a_time > 1 and not (best and best.is_bound_by_links):
            continue  # more rows at a time gather the weights less often, and do nothing else
        plans = [plan for plan in MEMORY_PLANS if can_win(mesh, plan)]
        # What needs the least memory first, where better is known: if that has no room, none has,
        # and if its links take too long, they do.
        if best is not None and plans:
            if not has_room(mesh, plans.pop()):
                continue
            if tried[-1].is_bound_by_links and tried[-1].seconds >= best.seconds:
                continue
        asked = len(tried)
        first = _first_with_room(plans, functools.partial(leaves_room, mesh))
        for plan in plans[first + 1 :]:
            keeps_more = plan.offload and plan.kept > plans[first].kept
            is_new = plan not in [each.plan for each in tried[asked:]]
            if keeps_more and is_new and can_win(mesh, plan):
                has_room(mesh, plan)
    return sorted(tried, key=lambda each: each.rank)


def _first_with_room(plans: list[MemoryPlan], has_room: Callable[[MemoryPlan], bool]) -> int:
    """The index of the first that has room, of plans that need less and less memory."""
    low, high = 0, len(plans)
    while low < high:
        middle = (low + high) // 2
        if has_room(plans[middle]):
            high = middle
        else:
            low = middle + 1
    return low


def candidate_meshes(base: config.TrainConfig, topology: str) -> Iterator[Mesh]:
    """Meshes that the model's dims allow: rows over all devices, or several devices for a row."""
    num_devices = len(chips.devices_of(topology))
    rows = base.data.global_batch_size
    for context, tensor in ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4)):
        shards, rest = divmod(num_devices, context * tensor)
        is_too_short = context > 1 and base.data.row_length < context * _MIN_SHARD_TOKENS
        if rest or rows % shards or is_too_short:
            continue
        for at_a_time in (1, 2, 4):
            if rows % (shards * at_a_time):
                continue
            mesh = Mesh(shards, context, tensor, rows // shards // at_a_time, at_a_time)
            try:
                config.validate_on_devices(_settings(base, mesh, MEMORY_PLANS[0]), num_devices)
            except ValueError:
                continue
            yield mesh


def _try(
    base: config.TrainConfig,
    topology: str,
    mesh: Mesh,
    plan: MemoryPlan,
    console: rich.console.Console,
    folder: pathlib.Path | None,
) -> Tried:
    settings = _settings(base, mesh, plan)
    flags = tuple(_flags(mesh, plan))
    label = " ".join(flag.rpartition(".")[2] for flag in flags)
    kept = folder / f"{_digest(settings, topology)}.json" if folder else None
    if kept and kept.exists():
        values = json.loads(kept.read_text())
        found = analysis.Preflight(**values["found"]) if values["found"] else None
        return Tried(label, mesh, plan, flags, found, values["fault"])
    found, fault = None, ""
    with console.status(label):
        try:
            found = analysis.analyse(compiled_step.compile_step(settings, topology))
        except compiled_step.DoesNotFitError:
            fault = "does not fit"
        except ValueError as error:
            fault = str(error)
    if kept:
        _keep(kept, {"found": analysis.as_json(found) if found else None, "fault": fault})
    one = Tried(label, mesh, plan, flags, found, fault)
    told = f"{found.peak_bytes / 1e9:.1f} GB, {one.seconds:.1f} s" if found else fault
    console.print(f"{label}: {told}", markup=False)
    return one


def _settings(base: config.TrainConfig, mesh: Mesh, plan: MemoryPlan) -> config.TrainConfig:
    return dataclasses.replace(
        base,
        mesh=dataclasses.replace(
            base.mesh,
            data=1,
            num_slices=1,
            fsdp=mesh.fsdp,
            context=mesh.context,
            tensor=mesh.tensor,
        ),
        compute=dataclasses.replace(
            base.compute,
            remat=plan.remat,
            remat_keep=plan.keep,
            remat_offload=plan.offload,
            mlp_chunks=plan.mlp_chunks,
            loss_chunk_tokens=plan.loss_chunk_tokens,
        ),
        optimizer=dataclasses.replace(
            base.optimizer,
            num_micro_batches=mesh.num_micro_batches,
            state_memory=plan.state_memory,
        ),
    )


def _flags(mesh: Mesh, plan: MemoryPlan) -> Iterator[str]:
    """What differs from the defaults, and what every pod sets."""
    yield f"--config.mesh.fsdp={mesh.fsdp}"
    for axis in ("context", "tensor"):
        if getattr(mesh, axis) > 1:
            yield f"--config.mesh.{axis}={getattr(mesh, axis)}"
    yield f"--config.optimizer.num_micro_batches={mesh.num_micro_batches}"
    yield f"--config.compute.remat={plan.remat}"
    if plan.keep:
        yield f"--config.compute.remat_keep={','.join(plan.keep)}"
    if plan.offload:
        yield f"--config.compute.remat_offload={','.join(plan.offload)}"
    yield f"--config.compute.mlp_chunks={plan.mlp_chunks}"
    yield f"--config.compute.loss_chunk_tokens={plan.loss_chunk_tokens}"
    if plan.state_memory != "device":
        yield f"--config.optimizer.state_memory={plan.state_memory}"


def _digest(settings: config.TrainConfig, topology: str) -> str:
    fields = [each.name for each in dataclasses.fields(analysis.Preflight)]
    told = [config.to_json_dict(settings), topology, analysis.versions(), fields]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _keep(path: pathlib.Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values) + "\n")
    os.replace(temporary, path)

"""Tries settings for a pod, and ranks those that fit by the estimated time of a step.

Each is compiled in full, one after another, some minutes each; so what cannot win is left out. With
a folder every result is kept there, and the same search goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import rich.console

from jaxterm import config, remat
from jaxterm.preflight import analysis, chips, compiled_step, memory_plans
from jaxterm.preflight.memory_plans import MEMORY_PLANS, MemoryPlan

MAX_SHARE = 0.9  # of memory; what is left is for what the compiler does not see: other programs
_MIN_GAIN = 0.02  # of a step's time, for which it is worth to compile once more
_MIN_SHARD_TOKENS = 8192  # of a row: with shorter ones latency counts, which no peak tells of


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How a pod shares a step's rows and weights."""

    fsdp: int
    context: int
    tensor: int
    num_micro_batches: int
    rows_at_a_time: int  # of one shard of the batch


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
        return self.found.step_seconds + exposed

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
        return passes_s + waits_s

    meshes = list(candidate_meshes(base, topology))
    return explore(meshes, compile_one, least_seconds, first=_own_settings(base, num_devices))


def explore(
    meshes: list[Mesh],
    compile_one: Callable[[Mesh, MemoryPlan], Tried],
    least_seconds: Callable[[Mesh, MemoryPlan], float],
    first: tuple[Mesh, MemoryPlan] | None = None,
) -> list[Tried]:
    """What was tried, the best first; `first` is what all others have to beat.

    What cannot beat the best step known is left out, by the least seconds that it takes.
    """
    search = _Search(compile_one, least_seconds)
    if first is not None:
        search.try_one(*first)
    for mesh in meshes:
        # More rows at a time gather the weights less often, and do nothing else.
        if mesh.rows_at_a_time == 1 or (search.best and search.best.is_bound_by_links):
            search.try_mesh(mesh)
    return sorted(search.tried.values(), key=lambda each: each.rank)


@dataclasses.dataclass
class _Search:
    """What is known while candidates are compiled."""

    compile_one: Callable[[Mesh, MemoryPlan], Tried]
    least_seconds: Callable[[Mesh, MemoryPlan], float]
    tried: dict[tuple[Mesh, MemoryPlan], Tried] = dataclasses.field(default_factory=dict)
    best: Tried | None = None  # of those that leave room

    def try_one(self, mesh: Mesh, plan: MemoryPlan) -> Tried:
        """Compile, where that was not done yet."""
        if (mesh, plan) not in self.tried:
            one = self.tried[mesh, plan] = self.compile_one(mesh, plan)
            if one.has_room and (self.best is None or one.rank < self.best.rank):
                self.best = one
        return self.tried[mesh, plan]

    def try_mesh(self, mesh: Mesh) -> None:
        """Find the first plan that leaves room, since those after it keep less.

        Then what keeps more than it, but on the host.
        """
        plans = [plan for plan in MEMORY_PLANS if self._can_win(mesh, plan)]
        # What needs the least memory first, where better is known: if that has no room, none has,
        # and if its links take too long, they do.
        if self.best is not None and plans:
            to_beat = self.best.seconds
            least = self.try_one(mesh, plans.pop())
            if not least.has_room or (least.is_bound_by_links and least.seconds >= to_beat):
                return
        first = self._first_with_room(mesh, plans)
        for plan in plans[first + 1 :]:
            if plan.offload and plan.kept > plans[first].kept and self._can_win(mesh, plan):
                self.try_one(mesh, plan)

    def _can_win(self, mesh: Mesh, plan: MemoryPlan) -> bool:
        to_beat = self.best.seconds if self.best else math.inf
        return self.least_seconds(mesh, plan) < (1 - _MIN_GAIN) * to_beat

    def _first_with_room(self, mesh: Mesh, plans: list[MemoryPlan]) -> int:
        """Its index, by halving; where a plan cannot win nothing after it can."""
        low, high = 0, len(plans)
        while low < high:
            middle = (low + high) // 2
            plan = plans[middle]
            if not self._can_win(mesh, plan) or self.try_one(mesh, plan).has_room:
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


def _own_settings(base: config.TrainConfig, num_devices: int) -> tuple[Mesh, MemoryPlan] | None:
    """What the config says itself; None where that is not for such a pod."""
    compute, optimizer = base.compute, base.optimizer
    try:
        sizes = config.validate_on_devices(base, num_devices)
    except ValueError:
        return None
    shards = sizes["data"] * sizes["fsdp"]
    rows_at_a_time = base.data.global_batch_size // (shards * optimizer.num_micro_batches)
    mesh = Mesh(
        shards, sizes["context"], sizes["tensor"], optimizer.num_micro_batches, rows_at_a_time
    )
    plan = MemoryPlan(
        remat=compute.remat,
        keep=compute.remat_keep,
        offload=compute.remat_offload,
        mlp_chunks=compute.mlp_chunks,
        loss_chunk_tokens=compute.loss_chunk_tokens,
        state_memory=optimizer.state_memory,
    )
    return (mesh, plan) if compute.remat in remat.POLICIES else None


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

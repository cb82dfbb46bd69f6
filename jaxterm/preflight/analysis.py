"""What a compiled train step costs a device: memory by kind, FLOPs, bytes between devices, time.

The time is an estimate, from peaks alone: the FLOPs of the step at the device's peak, and the bytes
that collectives and the host send at the peaks of their links. These run beside computation where
they can, so the largest bounds the step from below, and with it the utilisation from above.
"""

import dataclasses
import importlib.metadata
import math
from typing import Any

import jax

from jaxterm import config, metrics
from jaxterm.preflight import chips, compiled_step, hlo_costs, hlo_kept, hlo_text

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "tokamax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preflight:
    """All figures are of one device and one step."""

    topology: str
    num_devices: int
    mesh: dict[str, int]
    fits: bool
    capacity_bytes: int
    peak_bytes: int
    argument_bytes: int  # parameters, optimizer and batch
    temp_bytes: int  # at the peak, all that is no argument
    host_bytes: int  # in the host's memory
    memory: dict[str, int]  # the peak by kind
    collectives: dict[str, dict[str, int]]  # by kind: count, bytes, wire_bytes
    collective_bytes: int
    largest_collectives: list[dict[str, Any]]
    host_capacity_bytes: int
    host_transfer_bytes: int
    step_flops: float  # executed; attention at the full causal row
    model_flops: float  # that the mathematics needs, attention at the full causal row
    recompute_share: float  # step_flops / model_flops
    compute_seconds: float  # estimates, from peaks
    collective_seconds: float
    host_seconds: float
    step_seconds: float
    mfu_bound: float
    tokens_per_step: int
    tokens_per_second_bound: float
    unknown_loops: list[str]
    compile_seconds: float
    settings: dict[str, Any]
    versions: dict[str, str]


def analyse(step: compiled_step.CompiledStep) -> Preflight:
    """Read everything off a compiled step."""
    chip, costs = chips.chip_of(step.topology), hlo_costs.read(step.text)
    peak = _peak_bytes(step.memory)
    model_flops, attention_flops = _model_flops(step.run, step.num_devices)
    step_flops = costs.dot_flops + _attention_passes(step, costs) * attention_flops
    compute_s = step_flops / chip.flops
    wire = sum(kind["wire_bytes"] for kind in costs.by_kind().values())
    collective_s = wire / chip.link_bytes_per_s
    to_host_s = costs.to_host_bytes / chip.host_link_bytes_per_s
    from_host_s = costs.from_host_bytes / chip.host_link_bytes_per_s
    # What goes to the host goes while the forward pass runs, and comes back in the backward pass.
    forward_s = model_flops / 3 / chip.flops
    passes_s = max(forward_s, to_host_s) + max(compute_s - forward_s, from_host_s)
    step_s = max(passes_s, collective_s)
    tokens = step.run.data.global_batch_size * step.run.data.row_length
    return Preflight(
        topology=step.topology,
        num_devices=step.num_devices,
        mesh=step.mesh_sizes,
        fits=peak <= chip.hbm_bytes,
        capacity_bytes=chip.hbm_bytes,
        peak_bytes=peak,
        argument_bytes=step.memory.argument_size_in_bytes,
        temp_bytes=peak - step.memory.argument_size_in_bytes,
        host_bytes=step.memory.host_argument_size_in_bytes + step.memory.host_temp_size_in_bytes,
        memory=_memory_by_kind(step, peak),
        collectives=costs.by_kind(),
        collective_bytes=costs.collective_bytes,
        largest_collectives=[
            {"kind": each.kind, "shapes": [str(shape) for shape in each.shapes],
             "bytes": each.bytes, "times": each.times, "op": each.op_name}
            for each in costs.largest(8)
        ],
        host_capacity_bytes=chip.host_bytes,
        host_transfer_bytes=costs.to_host_bytes + costs.from_host_bytes,
        step_flops=step_flops,
        model_flops=model_flops,
        recompute_share=step_flops / model_flops,
        compute_seconds=compute_s,
        collective_seconds=collective_s,
        host_seconds=to_host_s + from_host_s,
        step_seconds=step_s,
        mfu_bound=model_flops / (chip.flops * step_s),
        tokens_per_step=tokens,
        tokens_per_second_bound=tokens / step_s,
        unknown_loops=[loop.name for loop in costs.unknown_loops],
        compile_seconds=step.seconds,
        settings=config.to_json_dict(step.run),
        versions=versions(),
    )  # fmt: skip


def as_json(found: Preflight) -> dict[str, Any]:
    """The preflight as plain JSON values."""
    return dataclasses.asdict(found)


def _peak_bytes(memory: Any) -> int:
    """Of the device's own memory; XLA counts arguments in the host's memory too."""
    peak = memory.peak_memory_in_bytes - memory.host_argument_size_in_bytes
    return peak + memory.generated_code_size_in_bytes


def _model_flops(run: config.TrainConfig, num_devices: int) -> tuple[float, float]:
    """FLOPs of the step that a device's share needs, and of that one pass of attention.

    Rows count as one full segment: what a step can cost at the most.
    """
    rows, length = run.data.global_batch_size, run.data.row_length
    pairs = rows * length * (length + 1) / 2
    matrices, attention = metrics.step_flops(
        run.model, num_tokens=rows * length, attention_pairs=pairs, is_frozen=run.lora.rank > 0
    )
    return (matrices + attention) / num_devices, attention / num_devices / 3


def _attention_passes(step: compiled_step.CompiledStep, costs: hlo_costs.Costs) -> float:
    """How often a step computes attention, a forward pass being 1 and a backward pass 2.

    A kernel's backward pass also makes the weights again; that is no more than what the kernel
    is, so it counts as the two products of gradients that it is for.
    """
    run = step.run
    passes = sum(
        kernel.times * (1 if "fwd" in kernel.name else 2)
        for kernel in costs.kernels
        if "splash" in kernel.name and "dq" not in kernel.name
    )
    rows_at_a_time = run.optimizer.num_micro_batches * _rows_of_a_shard(step)
    return passes / (run.model.num_layers * max(rows_at_a_time, 1))


def _rows_of_a_shard(step: compiled_step.CompiledStep) -> int:
    shards = step.mesh_sizes["data"] * step.mesh_sizes["fsdp"]
    return step.run.data.global_batch_size // step.run.optimizer.num_micro_batches // shards


def _memory_by_kind(step: compiled_step.CompiledStep, peak: int) -> dict[str, int]:
    """Parameters, optimizer, what the blocks keep for the backward pass, and all the rest."""
    kept = sum(
        shape.bytes
        for shape in hlo_kept.kept_stacks(step.text, step.run.model.num_layers)
        if shape.space != hlo_text.HOST_MEMORY
    )
    kinds = {
        "parameters": _shard_bytes(step.state.params),
        "optimizer": _shard_bytes(step.state.optimizer),
        "activations": kept,
    }
    kinds["temporaries"] = max(peak - sum(kinds.values()), 0)
    return kinds


def _shard_bytes(tree: Any) -> int:
    """Of one device's part of abstract arrays that lie in its own memory."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind in (None, "device")
    )


def versions() -> dict[str, str]:
    """Of the packages that decide what is compiled."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found

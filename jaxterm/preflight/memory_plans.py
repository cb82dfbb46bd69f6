"""Ways to trade memory for time, from the least computed again to the least memory, and the least
time that each takes on any mesh, in closed form."""

import dataclasses

from jaxterm import config, metrics, remat
from jaxterm.preflight import chips


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a step keeps, where, and in how small pieces it computes; see jaxterm/remat.py."""

    remat: str
    keep: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()
    mlp_chunks: int = 4
    loss_chunk_tokens: int = 1024
    state_memory: str = "device"

    @property
    def kept(self) -> frozenset[str]:
        """What is not computed again, wherever it waits."""
        return frozenset((*remat.POLICIES[self.remat], *self.keep, *self.offload)) - {"stream"}


# Each needs less of the device's memory than the one before it.
MEMORY_PLANS = (
    MemoryPlan("dots"),
    MemoryPlan("projections", keep=("gate",)),
    MemoryPlan("attention", keep=("gate",)),
    MemoryPlan("projections", offload=("gate", "up"), mlp_chunks=1),
    MemoryPlan("projections"),
    MemoryPlan("attention", keep=("k", "v")),
    MemoryPlan("attention"),
    MemoryPlan("full"),
    MemoryPlan("full", mlp_chunks=8, loss_chunk_tokens=512),
    MemoryPlan("full", offload=("stream",), mlp_chunks=8, loss_chunk_tokens=512),
    MemoryPlan(
        "full", offload=("stream",), mlp_chunks=8, loss_chunk_tokens=512, state_memory="host"
    ),
)


def least_seconds(
    run: config.TrainConfig, plan: MemoryPlan, chip: chips.Chip, num_devices: int
) -> float:
    """Of a step with a plan: what it computes, and what the host's link carries meanwhile.

    Each tensor that is not kept is computed once more. What waits on the host goes there while the
    forward pass runs, a third of the model's own FLOPs, and comes back in the backward pass.
    """
    model, length = run.model, run.data.row_length
    num_tokens = run.data.global_batch_size * length / num_devices
    matrices, attention = metrics.step_flops(
        model,
        num_tokens=num_tokens,
        attention_pairs=num_tokens * (length + 1) / 2,
        is_frozen=run.lora.rank > 0,
    )
    embed, query = model.embed_dim, model.num_heads * model.head_dim
    key = model.num_kv_heads * model.head_dim
    width = {
        "stream": embed, "q": query, "k": key, "v": key, "attention": query, "middle": embed,
        "gate": model.mlp_dim, "up": model.mlp_dim,
    }  # fmt: skip
    tokens_of_all_layers = num_tokens * model.num_layers
    again = {
        name: 2.0 * inputs * width[name] * tokens_of_all_layers
        for name, inputs in (
            ("q", embed), ("k", embed), ("v", embed), ("middle", query), ("gate", embed),
            ("up", embed),
        )
    } | {"attention": attention / 3}  # fmt: skip
    model_flops = matrices + attention
    flops = model_flops + sum(again[name] for name in again.keys() - plan.kept)
    bytes_per_value = 2 if run.compute.compute_dtype == "bfloat16" else 4
    num_bytes = bytes_per_value * tokens_of_all_layers * sum(width[name] for name in plan.offload)
    forward_s, host_s = model_flops / 3 / chip.flops, num_bytes / chip.host_link_bytes_per_s
    return max(forward_s, host_s) + max(flops / chip.flops - forward_s, host_s)


def tensor_seconds(
    run: config.TrainConfig, tensor: int, chip: chips.Chip, num_devices: int
) -> float:
    """The least that a step waits for what the `tensor` axis sends.

    Each block sums its output, and the gradient of its input, over the axis twice; a sum in a ring
    sends every array twice, but for the device's own part.
    """
    tokens_of_device = run.data.global_batch_size * run.data.row_length * tensor / num_devices
    bytes_per_value = 2 if run.compute.compute_dtype == "bfloat16" else 4
    array_bytes = tokens_of_device * run.model.embed_dim * bytes_per_value
    num_bytes = run.model.num_layers * 4 * 2 * array_bytes * (tensor - 1) / tensor
    return num_bytes / chip.link_bytes_per_s

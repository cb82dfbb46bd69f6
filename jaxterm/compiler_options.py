"""What XLA is told beside the program of a train step, by the platform of its devices.

A weight cut over `fsdp` is needed whole by its product, and its gradient, a sum over all rows, is
cut again. On TPUs XLA can do both as a ring of permutes between the parts of the product, hidden
behind it ("collective matmul"). Left to its own judgement, libtpu 0.0.50 does so on 32 chips; on 64
it writes each gather and each reduce-scatter as an all-reduce of the full array, twice the bytes on
the wires (32B on v5p:4x4x4: 375 GB a step, 193 GB with the options below, at the same peak).
"""

import jax

# After partitioning, wherever the pattern is found.
_COLLECTIVE_MATMUL = "post_spmd"

_OPTIONS: dict[str, dict[str, str]] = {
    "tpu": {
        "xla_tpu_all_gather_collective_matmul_mode": _COLLECTIVE_MATMUL,
        "xla_tpu_reduce_scatter_collective_matmul_mode": _COLLECTIVE_MATMUL,
    },
}


def for_mesh(mesh: jax.sharding.Mesh) -> dict[str, str]:
    """The `compiler_options` of `jax.jit` for a step on this mesh."""
    return _OPTIONS.get(mesh.devices.flat[0].platform, {})

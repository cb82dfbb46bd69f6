"""NVIDIA kernels against the definition, on whatever device JAX finds: python tests/gpu_parity.py.

Prints a JSON object: kernel -> largest error of (output, gradients of q, k, v), each relative to
the largest value of its kind, in bfloat16. tests/test_gpu_attention.py runs it where a GPU is.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import packed_rows

from jaxterm import attention, gpu_attention, sharding

LENGTH, HEADS, KV_HEADS, HEAD_DIM = 4096, 4, 2, 128


def packings(length):
    """Random rows, one-token segments, one segment, a row of padding, padding within a tile."""
    rng = np.random.default_rng(0)
    index = np.arange(length)
    random_rows = packed_rows.random_segment_ids(
        rng, rows=2, length=length, longest=length * 2 // 5
    )
    singles = np.where(index < 40, index + 1, 41)[None]
    padded = np.where(index < length * 3 // 5, 1 + index * 5 // length, 0)[None]
    rows = [random_rows, singles, np.ones((1, length)), np.zeros((1, length)), padded]
    return np.concatenate(rows).astype(np.int32)


def random_arguments(segment_ids, dtype, *, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM):
    """Queries, keys, values and a gradient of the output, which padding has none of."""
    rng = np.random.default_rng(1)
    shapes = [(*segment_ids.shape, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, d_out = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return q, k, v, jnp.asarray(segment_ids), d_out * (segment_ids > 0)[..., None, None]


def forward_and_backward(attend):
    """The jitted function (q, k, v, segment_ids, d_out) -> (out, gradients of q, k, v).

    Outputs of padding, which mean nothing, are zeros where they are finite.
    """

    @jax.jit
    def run(q, k, v, segment_ids, d_out):
        out, pull_back = jax.vjp(lambda q, k, v: attend(q, k, v, segment_ids), q, k, v)
        real = (segment_ids > 0)[..., None, None]
        return jnp.where(real | ~jnp.isfinite(out), out, 0), *pull_back(d_out)

    return run


def by_name(implementation):
    def attend(q, k, v, segment_ids):
        return attention.packed_attention(q, k, v, segment_ids, implementation=implementation)

    return forward_and_backward(attend)


def relative_errors(found, expected):
    pairs = [
        [np.asarray(x, np.float64) for x in pair] for pair in zip(found, expected, strict=True)
    ]
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]


def main():
    device = jax.devices()[0]
    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), devices=[device])
    q, k, v, ids, d_out = random_arguments(packings(LENGTH), jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in (q, k, v)]
    with jax.set_mesh(mesh), jax.default_matmul_precision("float32"):
        expected = by_name("reference")(*exact, ids, d_out.astype(jnp.float32))
    kinds = {"triton_gpu"}
    for num_shards in (1, 2):  # whole rows, and those that are cut
        kinds.add(gpu_attention.best_for(device.device_kind, jnp.bfloat16, num_shards))
    with jax.set_mesh(mesh):
        found = {kind: by_name(kind)(q, k, v, ids, d_out) for kind in sorted(kinds)}
    print(json.dumps({kind: relative_errors(x, expected) for kind, x in found.items()}))


if __name__ == "__main__":
    main()

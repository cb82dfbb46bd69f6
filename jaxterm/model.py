"""The Qwen3 dense decoder in Flax NNX.

Legend: B batch, T tokens, D embed, N query heads, K kv heads, H head dim, F mlp, V vocab, L layers.

Every parameter is declared once, with its logical axes (jaxterm/sharding.py turns them into mesh
axes) and in the layout of its Hugging Face tensor, [out, in], with the heads a dim of their own:
conversion is reshape and stack, never a transpose. The L blocks are one block whose parameters
have a leading dim `layers`, run by a scan over a rematerialised body, or written out one by one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Int

from jaxterm import (
    architecture,
    attention,
    config,
    embedding,
    lora,
    product,
    quantization,
    remat,
    rope,
    sharding,
    swiglu,
    unstack,
)

# A nested dict of arrays (or their descriptions); the blocks' leaves are stacked, [L, ...].
Params = dict[str, Any]

# Standard deviation of a fresh matrix (initializer_range of Qwen3's config.json).
INITIAL_STDDEV = 0.02


def _matrix(rngs: nnx.Rngs, dtype: jnp.dtype, *shape: int, axes: tuple[str | None, ...]):
    return nnx.Param(
        jax.random.normal(rngs.params(), shape, dtype) * jnp.asarray(INITIAL_STDDEV, dtype),
        logical_axes=axes,
    )


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last dim, computed in float32."""

    def __init__(self, dim: int, *, epsilon: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(dim, dtype), logical_axes=(None,))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Normalise; the result has the dtype of `x`."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(self.scale[...].astype(x.dtype), range(x.ndim - 1))
        return normed.astype(x.dtype) * scale


class Attention(nnx.Module):
    """Grouped-query attention; queries and keys are normalised per head before RoPE."""

    def __init__(
        self, model: architecture.ModelConfig, compute: config.ComputeConfig, rngs: nnx.Rngs
    ):
        d, h, n, k = model.embed_dim, model.head_dim, model.num_heads, model.num_kv_heads
        dtype = jnp.dtype(compute.param_dtype)
        self.q = _matrix(rngs, dtype, n, h, d, axes=("heads", None, "embed"))
        self.k = _matrix(rngs, dtype, k, h, d, axes=("kv_heads", None, "embed"))
        self.v = _matrix(rngs, dtype, k, h, d, axes=("kv_heads", None, "embed"))
        self.o = _matrix(rngs, dtype, d, n, h, axes=("embed", "heads", None))
        self.q_norm = RMSNorm(h, epsilon=model.norm_epsilon, dtype=dtype)
        self.k_norm = RMSNorm(h, epsilon=model.norm_epsilon, dtype=dtype)
        self.compute = compute

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        cos_sin: tuple[Array, Array],
        adapters: dict[str, lora.Adapter] | None = None,
    ) -> Float[Array, "B T D"]:
        """Mix the tokens of each segment; `adapters` as in `lora.Adapters`."""

        def multiply(subscripts: str, x: Array, name: str, weight: nnx.Param) -> Array:
            array = quantization.as_array(weight.get_value(), x.dtype)
            adapter = (adapters or {}).get(name)
            return product.product(
                subscripts, x, array, adapter, quantization=self.compute.quantization
            )

        q, k, v = (
            remat.name(multiply("BTD,NHD->BTNH", x, name, weight), name)
            for name, weight in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        q = rope.rotate(self.q_norm(q), *cos_sin)
        k = rope.rotate(self.k_norm(k), *cos_sin)
        mixed = attention.packed_attention(
            q, k, v, segment_ids,
            implementation=self.compute.attention, block=self.compute.attention_block,
        )  # fmt: skip
        return multiply("BTNH,DNH->BTD", mixed, "o", self.o)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(
        self, model: architecture.ModelConfig, compute: config.ComputeConfig, rngs: nnx.Rngs
    ):
        d, f, dtype = model.embed_dim, model.mlp_dim, jnp.dtype(compute.param_dtype)
        self.gate = _matrix(rngs, dtype, f, d, axes=("mlp", "embed"))
        self.up = _matrix(rngs, dtype, f, d, axes=("mlp", "embed"))
        self.down = _matrix(rngs, dtype, d, f, axes=("embed", "mlp"))
        self.compute = compute

    def __call__(
        self, x: Float[Array, "B T D"], adapters: dict[str, lora.Adapter] | None = None
    ) -> Float[Array, "B T D"]:
        """Transform each token; `adapters` as in `lora.Adapters`."""
        gate, up, down = (
            quantization.as_array(weight.get_value(), x.dtype)
            for weight in (self.gate, self.up, self.down)
        )
        return swiglu.swiglu(x, gate, up, down, adapters, self.compute)


class Block(nnx.Module):
    """Attention and MLP, each on a normalised input and added to the stream."""

    def __init__(
        self, model: architecture.ModelConfig, compute: config.ComputeConfig, rngs: nnx.Rngs
    ):
        norm = functools.partial(
            RMSNorm,
            model.embed_dim,
            epsilon=model.norm_epsilon,
            dtype=jnp.dtype(compute.param_dtype),
        )
        self.attention_norm = norm()
        self.attention = Attention(model, compute, rngs)
        self.mlp_norm = norm()
        self.mlp = MLP(model, compute, rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        cos_sin: tuple[Array, Array],
        adapters: lora.Adapters | None = None,
    ) -> Float[Array, "B T D"]:
        """The stream after this block."""
        of_attention = of_mlp = None
        if adapters is not None:
            of_attention, of_mlp = adapters["attention"], adapters["mlp"]
        x = remat.name(x, "stream")
        with jax.named_scope("attention"):
            x = x + self.attention(self.attention_norm(x), segment_ids, cos_sin, of_attention)
            x = remat.name(x, "middle")
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.mlp_norm(x), of_mlp)
        return sharding.constrain(x, "batch", "length", None)


class Qwen3(nnx.Module):
    """The decoder up to its last norm; `head` is what turns its output into logits."""

    def __init__(
        self, model: architecture.ModelConfig, compute: config.ComputeConfig, rngs: nnx.Rngs
    ):
        dtype = jnp.dtype(compute.param_dtype)
        vocabulary = (model.padded_vocab_size, model.embed_dim)
        self.embedding = _matrix(rngs, dtype, *vocabulary, axes=("vocab", "embed"))

        @nnx.split_rngs(splits=model.num_layers)
        @nnx.vmap
        def stack_of_blocks(rngs: nnx.Rngs) -> Block:
            return Block(model, compute, rngs)

        self.layers = stack_of_blocks(rngs)
        self.final_norm = RMSNorm(model.embed_dim, epsilon=model.norm_epsilon, dtype=dtype)
        if not model.tie_embeddings:
            self.output = _matrix(rngs, dtype, *vocabulary, axes=("vocab", "embed"))
        self.model = model
        self.compute = compute

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        adapters: lora.Adapters | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last norm, in the compute dtype.

        Args:
            tokens: ids below `vocab_size`.
            positions: restarting at 0 in each segment.
            segment_ids: 1, 2, ... along a row; 0 is padding.
            adapters: stacked as the weights are; None in a model that has none.
        """
        dtype = jnp.dtype(self.compute.compute_dtype)
        with jax.named_scope("embed"):
            x = embedding.look_up(self.embedding[...], tokens, dtype)
        cos_sin = rope.rotation(positions, self.model)

        def run_block(x, block, adapters):
            return block(x, segment_ids, cos_sin, adapters)

        run = _scan_blocks if self.compute.scan_layers else _unroll_blocks
        policy = remat.policy_of(self.compute)
        return self.final_norm(run(run_block, policy, x, self.layers, adapters))

    @property
    def head(self) -> Float[Array, "V D"]:
        """The matrix whose product with a hidden state is the logits: the embedding when tied."""
        return (self.embedding if self.model.tie_embeddings else self.output)[...]


def _scan_blocks(run_block, policy, x: Array, layers: Block, adapters: Any) -> Array:
    """One body for all blocks: compiled once, and what it keeps is copied into stacks [L, ...]."""
    # A scan's backward loop is another loop: nothing could be merged across them by CSE.
    kept_by_policy = nnx.remat(run_block, policy=policy, prevent_cse=False)
    scan = nnx.scan(kept_by_policy, in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry)
    return scan(x, layers, adapters)


def _unroll_blocks(run_block, policy, x: Array, layers: Block, adapters: Any) -> Array:
    """Each block by itself: compiled L times, and what they keep stays where it was made."""
    graph, state = nnx.split(layers)

    @functools.partial(jax.checkpoint, policy=policy)
    def run(x, state, adapters):
        return run_block(x, nnx.merge(graph, state), adapters)

    for of_layer in unstack.unstack((state, adapters)):
        x = run(x, *of_layer)
    return x


def make_model(
    model: architecture.ModelConfig, compute: config.ComputeConfig, seed: int = 0
) -> Qwen3:
    """A decoder with fresh parameters."""
    return Qwen3(model, compute, nnx.Rngs(params=seed))


def abstract_params(
    model: architecture.ModelConfig,
    compute: config.ComputeConfig,
    mesh: jax.sharding.Mesh | None = None,
) -> Params:
    """The parameters without their values: nested dict of jax.ShapeDtypeStruct.

    With a mesh every leaf has its NamedSharding on it.
    """

    def describe(variable: nnx.Variable) -> jax.ShapeDtypeStruct:
        placed = None if mesh is None else sharding.named_sharding(mesh, *_axes(variable))
        return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=placed)

    flat = nnx.to_flat_state(nnx.state(_abstract_model(model, compute), nnx.Param))
    return traverse_util.unflatten_dict({path: describe(variable) for path, variable in flat})


def logical_axes(
    model: architecture.ModelConfig, compute: config.ComputeConfig
) -> dict[tuple[str, ...], tuple[str | None, ...]]:
    """Of each parameter, by its path in the tree: the logical axis of every dim."""
    flat = nnx.to_flat_state(nnx.state(_abstract_model(model, compute), nnx.Param))
    return {tuple(map(str, path)): _axes(variable) for path, variable in flat}


def _axes(variable: nnx.Variable) -> tuple[str | None, ...]:
    axes = variable.get_metadata("logical_axes")
    return (None,) * (len(variable.shape) - len(axes)) + axes  # the leading dim `layers`


def init_params(
    model: architecture.ModelConfig,
    compute: config.ComputeConfig,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> Params:
    """Fresh parameters, made where they will lie: no device ever holds more than its shards."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(model, compute, mesh))

    @functools.partial(jax.jit, out_shardings=shardings)
    def init() -> Params:
        return nnx.to_pure_dict(nnx.state(make_model(model, compute, seed), nnx.Param))

    with jax.set_mesh(mesh):
        return init()


def with_params(
    model: architecture.ModelConfig, compute: config.ComputeConfig, params: Params
) -> Qwen3:
    """The decoder that has these parameters (a nested dict as `init_params` makes it)."""
    graph, state = nnx.split(_abstract_model(model, compute))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


@functools.cache
def _abstract_model(model: architecture.ModelConfig, compute: config.ComputeConfig) -> Qwen3:
    return nnx.eval_shape(lambda: make_model(model, compute))

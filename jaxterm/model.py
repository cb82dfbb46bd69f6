"""The Qwen3 dense decoder in Flax NNX.

Legend: B batch, T tokens, D embed, N query heads, K kv heads, H head dim, F mlp, V vocab, L layers.

Every parameter is declared once, with its logical axes (jaxterm/sharding.py turns them into mesh
axes) and in the layout of its Hugging Face tensor, [out, in], with the heads a dim of their own:
conversion is reshape and stack, never a transpose. The L blocks are one block whose parameters
have a leading dim `layers`, run by a scan over a rematerialised body.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Int

from jaxterm import architecture, attention, config, embedding, remat, rope, sharding

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
    ) -> Float[Array, "B T D"]:
        """Mix the tokens of each segment."""
        q, k, v = (
            remat.name(jnp.einsum("BTD,NHD->BTNH", x, weight[...].astype(x.dtype)), name)
            for name, weight in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        q = rope.rotate(self.q_norm(q), *cos_sin)
        k = rope.rotate(self.k_norm(k), *cos_sin)
        mixed = attention.packed_attention(
            q, k, v, segment_ids,
            implementation=self.compute.attention, block=self.compute.attention_block,
        )  # fmt: skip
        return jnp.einsum("BTNH,DNH->BTD", mixed, self.o[...].astype(x.dtype))


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)).

    F may be cut into chunks, done one after another: the arrays [B, T, F], the largest of a block,
    then exist a chunk at a time, in both passes. What is computed and communicated stays the same.
    """

    def __init__(
        self, model: architecture.ModelConfig, compute: config.ComputeConfig, rngs: nnx.Rngs
    ):
        d, f, dtype = model.embed_dim, model.mlp_dim, jnp.dtype(compute.param_dtype)
        self.gate = _matrix(rngs, dtype, f, d, axes=("mlp", "embed"))
        self.up = _matrix(rngs, dtype, f, d, axes=("mlp", "embed"))
        self.down = _matrix(rngs, dtype, d, f, axes=("embed", "mlp"))
        self.compute = compute

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Transform each token."""
        gate, up, down = (weight[...].astype(x.dtype) for weight in (self.gate, self.up, self.down))
        num_chunks = self.compute.mlp_chunks
        if num_chunks == 1:
            return _swiglu(x, gate, up, down)

        @functools.partial(jax.checkpoint, policy=remat.policy_of(self.compute), prevent_cse=False)
        def add_chunk(total, weights):
            return total + _swiglu(x, *weights), None

        chunks = (*(_chunks(w, num_chunks, 0) for w in (gate, up)), _chunks(down, num_chunks, 1))
        return jax.lax.scan(add_chunk, jnp.zeros_like(x), chunks)[0]


def _chunks(weight: Array, num_chunks: int, axis: int) -> Array:
    """[chunks, ...]: of each shard of `mlp` a piece in every chunk."""
    shards = sharding.num_shards("mlp")
    shape = weight.shape
    cut = weight.reshape(*shape[:axis], shards, num_chunks, -1, *shape[axis + 1 :])
    cut = jnp.moveaxis(cut, axis + 1, 0)
    return cut.reshape(num_chunks, *shape[:axis], -1, *shape[axis + 1 :])


def _swiglu(
    x: Float[Array, "B T D"],
    gate: Float[Array, "F D"],
    up: Float[Array, "F D"],
    down: Float[Array, "D F"],
) -> Float[Array, "B T D"]:
    gated = remat.name(jnp.einsum("BTD,FD->BTF", x, gate), "gate")
    upped = remat.name(jnp.einsum("BTD,FD->BTF", x, up), "up")
    return _down(gated, upped, down)


@jax.custom_vjp
def _down(
    gate: Float[Array, "B T F"], up: Float[Array, "B T F"], weight: Float[Array, "D F"]
) -> Float[Array, "B T D"]:
    """down(silu(gate) * up), whose backward pass never holds more than three [B, T, F] arrays."""
    return jnp.einsum("BTF,DF->BTD", jax.nn.silu(gate) * up, weight)


def _down_forward(gate: Array, up: Array, weight: Array):
    return _down(gate, up, weight), (gate, up, weight)


def _down_backward(residuals: tuple[Array, Array, Array], d_out: Float[Array, "B T D"]):
    gate, up, weight = residuals
    d_weight = jnp.einsum("BTD,BTF->DF", d_out, jax.nn.silu(gate) * up)
    # The product that is made of gate and up is used up before its gradient is made; the gradients
    # of gate and up then take their places.
    d_weight, gate, up, d_out = jax.lax.optimization_barrier((d_weight, gate, up, d_out))
    d_product = jnp.einsum("BTD,DF->BTF", d_out, weight)
    silu, d_silu = jax.vjp(jax.nn.silu, gate)
    return *d_silu(d_product * up), d_product * silu, d_weight


_down.defvjp(_down_forward, _down_backward)


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
    ) -> Float[Array, "B T D"]:
        """The stream after this block."""
        x = remat.name(x, "stream")
        with jax.named_scope("attention"):
            x = x + self.attention(self.attention_norm(x), segment_ids, cos_sin)
            x = remat.name(x, "middle")
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.mlp_norm(x))
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
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last norm, in the compute dtype.

        Args:
            tokens: ids below `vocab_size`.
            positions: restarting at 0 in each segment.
            segment_ids: 1, 2, ... along a row; 0 is padding.
        """
        dtype = jnp.dtype(self.compute.compute_dtype)
        with jax.named_scope("embed"):
            x = embedding.look_up(self.embedding[...], tokens, dtype)
        cos_sin = rope.rotation(positions, self.model)

        policy = remat.policy_of(self.compute)

        # A scan's backward loop is another loop: nothing could be merged across them by CSE.
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @functools.partial(nnx.remat, policy=policy, prevent_cse=False)
        def run_block(x, block):
            return block(x, segment_ids, cos_sin)

        return self.final_norm(run_block(x, self.layers))

    @property
    def head(self) -> Float[Array, "V D"]:
        """The matrix whose product with a hidden state is the logits: the embedding when tied."""
        return (self.embedding if self.model.tie_embeddings else self.output)[...]


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
        axes = variable.get_metadata("logical_axes")
        axes = (None,) * (len(variable.shape) - len(axes)) + axes  # the leading dim `layers`
        placed = None if mesh is None else sharding.named_sharding(mesh, *axes)
        return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=placed)

    flat = nnx.to_flat_state(nnx.state(_abstract_model(model, compute), nnx.Param))
    return traverse_util.unflatten_dict({path: describe(variable) for path, variable in flat})


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

"""Which parameters a run has, how they are stored, and which of them it trains.

All of the model's (jaxterm/model.py); or, with config.lora.rank, those of the adapters alone:

    layers, embedding, ...   the frozen model; config.lora.base_dtype stores each weight of its
                             blocks as {codes, scale} (jaxterm/quantization.py)
    lora                     attention and mlp -> weight -> {a, b} (jaxterm/lora.py), float32

Gradients and moments are of what is trained: there are none of the frozen model.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxterm import architecture, config, lora, model, quantization, sharding

# Where a leaf is in a nested dict.
Path = tuple[str, ...]

LORA = "lora"


def abstract_params(
    model_: architecture.ModelConfig,
    compute: config.ComputeConfig,
    settings: config.LoraConfig,
    mesh: jax.sharding.Mesh | None = None,
) -> model.Params:
    """All parameters of a run without their values: nested dict of jax.ShapeDtypeStruct.

    With a mesh every leaf has its NamedSharding on it.
    """
    base = model.abstract_params(model_, compute, mesh)
    if not settings.rank:
        return base
    axes = model.logical_axes(model_, compute)
    flat: dict[Path, Any] = dict(traverse_util.flatten_dict(base))
    for path in _paths(lora.MODULES) if settings.base_dtype != "param" else ():
        weight = flat.pop(path)
        for part, leaf in quantization.describe(weight.shape, settings.base_dtype).items():
            flat[*path, part] = _placed(mesh, axes[path], leaf)
    shapes: dict[Path, Any] = dict(traverse_util.flatten_dict(base))
    for path in _paths(settings.weights):
        of_axes = lora.axes(path[-1], axes[path])
        for part, shape in lora.shapes(path[-1], shapes[path].shape, settings.rank).items():
            leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
            flat[LORA, *path[1:], part] = _placed(mesh, of_axes[part], leaf)
    return traverse_util.unflatten_dict(flat)


def init_params(
    run: config.TrainConfig, mesh: jax.sharding.Mesh, base: model.Params
) -> model.Params:
    """All parameters before the first step, made of the model's, which are used up.

    Args:
        run: its seed decides the adapters.
        mesh: where the parameters lie.
        base: those of the model, in full.
    """
    if not run.lora.rank:
        return base
    abstract = abstract_params(run.model, run.compute, run.lora, mesh)
    wanted: dict[Path, Any] = dict(traverse_util.flatten_dict(abstract))
    flat: dict[Path, Any] = dict(traverse_util.flatten_dict(base))
    for path in _paths(lora.MODULES) if run.lora.base_dtype != "param" else ():
        # One weight after the other: most of the model is there once, not twice.
        weight = flat.pop(path)
        stored = _quantize(weight, run.lora.base_dtype, _at(wanted, path))
        weight.delete()
        flat |= {(*path, part): array for part, array in stored.items()}
    keys = jax.random.split(jax.random.key(run.seed), len(lora.MODULES))
    for key, (name, module) in zip(keys, lora.MODULES.items(), strict=True):
        if name in run.lora.weights:
            path = (LORA, module, name)
            shapes = {part: wanted[*path, part].shape for part in ("a", "b")}
            make = jax.jit(functools.partial(lora.fresh, shapes_=shapes),
                           out_shardings=_at(wanted, path))  # fmt: skip
            flat |= {(*path, part): array for part, array in make(key).items()}
    return traverse_util.unflatten_dict(flat)


def trained(params: model.Params) -> model.Params:
    """The part that has gradients and moments."""
    return params.get(LORA, params)


def with_trained(params: model.Params, part: model.Params) -> model.Params:
    """`params` with another `trained` part."""
    return params | {LORA: part} if LORA in params else part


def parts(
    params: model.Params, settings: config.LoraConfig
) -> tuple[model.Params, lora.Adapters | None]:
    """What the decoder is made with, and what it is called with."""
    if LORA not in params:
        return params, None
    base = {name: part for name, part in params.items() if name != LORA}
    return _as_quantized(base), lora.bind(params[LORA], settings)


def _as_quantized(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {"codes", "scale"}:
        return quantization.Quantized(**tree)
    return {name: _as_quantized(part) for name, part in tree.items()}


def _paths(names: Iterable[str]) -> list[Path]:
    return [("layers", lora.MODULES[name], name) for name in names]


def _at(wanted: dict[Path, Any], path: Path) -> dict[str, Any]:
    """The shardings of the arrays under `path`."""
    return {where[-1]: leaf.sharding for where, leaf in wanted.items() if where[:-1] == path}


def _quantize(weight: jax.Array, base_dtype: str, shardings: dict[str, Any]) -> dict[str, Any]:
    make = functools.partial(quantization.quantize, base_dtype=base_dtype)
    return jax.jit(make, out_shardings=shardings)(weight)


def _placed(
    mesh: jax.sharding.Mesh | None, axes: tuple[str | None, ...], leaf: jax.ShapeDtypeStruct
) -> jax.ShapeDtypeStruct:
    """`leaf` where it lies: dims that the mesh does not divide, as those of scales, stay whole."""
    if mesh is None:
        return leaf
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        even = [
            axis if axis and size % sharding.num_shards(axis) == 0 else None
            for axis, size in zip(axes, leaf.shape, strict=True)
        ]
    placed = sharding.named_sharding(mesh, *even)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

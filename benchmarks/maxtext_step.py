"""One training step of MaxText at a time, asked for by lines on stdin; see maxtext_speed_cpu.py.

    python benchmarks/maxtext_step.py FOLDER NUM_DEVICES SETTING=VALUE ...

It runs where MaxText is installed, and imports nothing of jaxterm. FOLDER holds `weights.npz`
(float32, Hugging Face's names and layout [out, in]) and `batch.npz` (int32 [rows, length]). The
settings are MaxText's own. Its set-up, its jitted `train_step` and its optimizer are used as they
are; only the weights and the batch are put in their place.

For every line that it reads it does a step and writes a JSON object: the loss in nats a target, the
wall-clock seconds from the call to the moment when the new state is there, the number of parameters
and the versions of packages. It ends with its stdin.
"""

import json
import os
import pathlib
import sys
import time
from importlib import metadata
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import numpy as np
from flax import nnx
from flax.core import spmd

# The rest of a parameter's path -> its tensor's name, and the layers' part of it.
OUTSIDE = {
    "token_embedder.embedding": "model.embed_tokens.weight",
    "decoder.decoder_norm.scale": "model.norm.weight",
}
IN_LAYER = {
    "pre_self_attention_layer_norm.scale": "input_layernorm",
    "post_self_attention_layer_norm.scale": "post_attention_layernorm",
    "self_attention.query.kernel": "self_attn.q_proj",
    "self_attention.key.kernel": "self_attn.k_proj",
    "self_attention.value.kernel": "self_attn.v_proj",
    "self_attention.out.kernel": "self_attn.o_proj",
    "self_attention.query_norm.scale": "self_attn.q_norm",
    "self_attention.key_norm.scale": "self_attn.k_norm",
    "mlp.wi_0.kernel": "mlp.gate_proj",
    "mlp.wi_1.kernel": "mlp.up_proj",
    "mlp.wo.kernel": "mlp.down_proj",
}
SCAN_AXIS = 1  # of a stacked parameter: MaxText's param_scan_axis


def read_value(name: str, shape: tuple[int, ...], weights: dict[str, np.ndarray]) -> np.ndarray:
    """The parameter `name` of MaxText: kernels are [in, out], heads are dims of their own."""
    if name in OUTSIDE:
        return weights[OUTSIDE[name]].reshape(shape)
    head, _, rest = name.removeprefix("decoder.").partition(".")
    tensor = f"model.layers.{{}}.{IN_LAYER[rest]}.weight"
    if head != "layers":  # not scanned: layers_0, layers_1, ...
        return weights[tensor.format(head.removeprefix("layers_"))].T.reshape(shape)
    layers = range(shape[SCAN_AXIS])
    one = shape[:SCAN_AXIS] + shape[SCAN_AXIS + 1 :]
    return np.stack([weights[tensor.format(i)].T.reshape(one) for i in layers], SCAN_AXIS)


def put_weights(model: Any, weights: dict[str, np.ndarray]) -> int:
    """Put the weights in the place of the model's own; returns how many parameters there are."""
    num_params = 0
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        old = variable.get_value()
        new = read_value(".".join(map(str, path)), old.shape, weights)
        variable.set_value(jax.device_put(new, old.sharding))
        num_params += new.size
    if num_params != sum(x.size for x in weights.values()):
        raise RuntimeError(f"MaxText's model has {num_params} parameters, the weights have others")
    return num_params


def make_step(settings: list[str], weights: dict[str, np.ndarray], batch: dict[str, np.ndarray]):
    """MaxText's own set-up and step, as its train_loop puts them together; and its parameters."""
    from maxtext import configs  # pyright: ignore[reportMissingImports]
    from maxtext.configs import pyconfig  # pyright: ignore[reportMissingImports]
    from maxtext.trainers.pre_train import train  # pyright: ignore[reportMissingImports]
    from maxtext.utils import sharding, train_utils  # pyright: ignore[reportMissingImports]

    base = pathlib.Path(configs.__file__).with_name("base.yml")
    config = pyconfig.initialize(["", str(base), *settings])
    made = train_utils.setup_train_loop(config, None)
    shardings, mesh, state = made[2], made[4], made[10]
    num_params = put_weights(state.model, weights)
    graph, state = nnx.split(state)
    of_params, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    jitted, _ = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, shardings, train.train_step, params_shardings=of_params
    )
    on_device = jax.device_put(batch, sharding.get_input_data_sharding(config, mesh))

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh), spmd.logical_axis_rules(config.logical_axis_rules):
            state, metrics = jitted(state, dict(on_device))
        return float(jax.block_until_ready((state, metrics))[1]["scalar"]["learning/loss"])

    return step, num_params


def main(folder: str, num_devices: str, *settings: str) -> None:
    # Lines to whoever asks go to the old stdout; what MaxText prints goes to stderr.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    jax.config.update("jax_num_cpu_devices", int(num_devices))
    weights, batch = (dict(np.load(pathlib.Path(folder, f"{x}.npz"))) for x in ("weights", "batch"))
    step, num_params = make_step(list(settings), weights, batch)
    versions = {name: metadata.version(name) for name in ("maxtext", "jax", "flax", "optax")}
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        answer = {"loss": loss, "seconds": time.perf_counter() - start}
        print(json.dumps(answer | {"num_params": num_params, "versions": versions}), file=lines)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""transformers' Qwen3 in torch: logits, loss and gradients of tiny random variants.

Weights and inputs are drawn by name from a seed in numpy, so that the committed golden holds only
samples of the results. Hugging Face's names are mapped to ours here by hand, not by convert/.
"""

import jax.numpy as jnp
import numpy as np

from jaxterm import architecture

_BASE = {
    "model_type": "qwen3", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip

_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
         "original_max_position_embeddings": 64}  # fmt: skip

# What each variant's config.json says beside _BASE. Rows are 96 tokens: beyond YaRN's 64.
VARIANTS = {
    "untied": {},
    "tied": {
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    },
    "wide_heads": {"head_dim": 24, "num_key_value_heads": 1, "hidden_size": 40},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "yarn": {"head_dim": 16, "rope_parameters": _YARN},
    "yarn_explicit": {
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_parameters": _YARN | {"beta_fast": 4.0, "beta_slow": 2.0, "attention_factor": 1.3},
    },
}

ROWS, LENGTH = 2, 96
_SAMPLES = 6  # values of the logits and of each gradient that a golden holds


def hf_values(variant: str) -> dict:
    """The variant's config.json."""
    return _BASE | VARIANTS[variant]


def _draw(variant: str, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([*variant.encode(), 0, *name.encode()]))


def hf_shapes(values: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the variant's checkpoint."""
    d, h, f = values["hidden_size"], values["head_dim"], values["intermediate_size"]
    n, k = values["num_attention_heads"] * h, values["num_key_value_heads"] * h
    shapes = {"model.embed_tokens.weight": (values["vocab_size"], d), "model.norm.weight": (d,)}
    if not values["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (values["vocab_size"], d)
    block = {
        "self_attn.q_proj": (n, d), "self_attn.k_proj": (k, d), "self_attn.v_proj": (k, d),
        "self_attn.o_proj": (d, n), "self_attn.q_norm": (h,), "self_attn.k_norm": (h,),
        "input_layernorm": (d,), "post_attention_layernorm": (d,),
        "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
    }  # fmt: skip
    for layer in range(values["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def weights(variant: str) -> dict[str, np.ndarray]:
    """Random float32 tensors under Hugging Face's names."""
    result = {}
    for name, shape in hf_shapes(hf_values(variant)).items():
        values = _draw(variant, name).random(shape) - 0.5
        # Norm scales about 1; embeddings of order 1; matrices that keep the size of their input.
        scale = 1.0 if len(shape) == 1 or "embed" in name else 3.0 / np.sqrt(shape[1])
        result[name] = (values * scale + (len(shape) == 1)).astype(np.float32)
    return result


def inputs(variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss mask, [ROWS, LENGTH]."""
    rng = _draw(variant, "inputs")
    vocab_size = hf_values(variant)["vocab_size"]
    tokens = np.floor(rng.random((ROWS, LENGTH)) * vocab_size).astype(np.int32)
    return tokens, (rng.random((ROWS, LENGTH)) < 0.4).astype(np.int32)


def params_from_hf(tensors: dict[str, np.ndarray], model: architecture.ModelConfig) -> dict:
    """Hugging Face's tensors as our nested dict: heads split off, layers stacked."""
    n, k, h, d = model.num_heads, model.num_kv_heads, model.head_dim, model.embed_dim

    def stack(name: str, *shape: int) -> jnp.ndarray:
        layers = [tensors[f"model.layers.{i}.{name}.weight"] for i in range(model.num_layers)]
        return jnp.stack([jnp.asarray(layer).reshape(shape) for layer in layers])

    params = {
        "embedding": jnp.asarray(tensors["model.embed_tokens.weight"]),
        "final_norm": {"scale": jnp.asarray(tensors["model.norm.weight"])},
        "layers": {
            "attention_norm": {"scale": stack("input_layernorm", d)},
            "attention": {
                "q": stack("self_attn.q_proj", n, h, d),
                "k": stack("self_attn.k_proj", k, h, d),
                "v": stack("self_attn.v_proj", k, h, d),
                "o": stack("self_attn.o_proj", d, n, h),
                "q_norm": {"scale": stack("self_attn.q_norm", h)},
                "k_norm": {"scale": stack("self_attn.k_norm", h)},
            },
            "mlp_norm": {"scale": stack("post_attention_layernorm", d)},
            "mlp": {
                "gate": stack("mlp.gate_proj", model.mlp_dim, d),
                "up": stack("mlp.up_proj", model.mlp_dim, d),
                "down": stack("mlp.down_proj", d, model.mlp_dim),
            },
        },
    }
    if not model.tie_embeddings:
        params["output"] = jnp.asarray(tensors["lm_head.weight"])
    return params


def torch_model(variant: str):
    """transformers' model with the variant's weights: float32, eager attention."""
    import torch
    import transformers

    values = {name: x for name, x in hf_values(variant).items() if name != "model_type"}
    hf = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**values, attn_implementation="eager")
    )
    hf.load_state_dict({name: torch.from_numpy(x) for name, x in weights(variant).items()},
                       strict=not values["tie_word_embeddings"])  # fmt: skip
    return hf.float()


def torch_results(variant: str) -> dict:
    """What torch computes: logits, mean loss of the masked tokens, gradients under HF's names."""
    import torch

    hf = torch_model(variant)
    tokens, loss_mask = inputs(variant)
    logits = hf(torch.from_numpy(tokens).long(), use_cache=False).logits
    targets = torch.from_numpy(np.where(loss_mask, tokens, -100)[:, 1:]).long()
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100
    )
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in hf.named_parameters()}
    return {"logits": logits.detach().numpy(), "loss": loss.item(), "gradients": gradients}


def sample(variant: str, name: str, x: np.ndarray) -> list[float]:
    """Some values of an array, at places drawn from its name."""
    places = np.floor(_draw(variant, "places " + name).random(_SAMPLES) * x.size).astype(int)
    return [float(value) for value in x.reshape(-1)[places]]


def summary(variant: str, results: dict) -> dict[str, list[float]]:
    """What a golden holds: the loss, some logits, of each gradient the norm and some values."""
    lines = {"loss": [results["loss"]], "logits": sample(variant, "logits", results["logits"])}
    for name, x in sorted(results["gradients"].items()):
        lines[name] = [float(np.linalg.norm(x)), *sample(variant, name, x)]
    return {f"{variant} {name}": values for name, values in lines.items()}


def to_json(lines: dict[str, list[float]]) -> str:
    """Goldens as text, one tensor a line; nine digits tell every float32 from the next."""
    texts = (
        f'"{name}": [{", ".join(f"{value:.9g}" for value in values)}]'
        for name, values in lines.items()
    )
    return "{\n" + ",\n".join(texts) + "\n}\n"

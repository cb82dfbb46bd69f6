"""Qwen3-8B on a corpus of terminal sessions with the paper's recipe (arXiv 2602.21193, 5.1).

    python -m jaxterm.train --config=configs/8b.py --workdir=DIR \\
        --config.start.hf_dir=/models/Qwen3-8B --config.data.corpus=/data/Nemotron-Terminal-Corpus

For a pod, with the settings that `python -m jaxterm.compile --search` found for it:

    python -m jaxterm.train --config=configs/8b.py:v6e:4x4 ...

Hardware in the paper: 32 GPUs. Here: any mesh whose data*fsdp divides 128.
"""

from typing import Any

from jaxterm import architecture, config

_COMPUTE: dict[str, Any] = {"compute_dtype": "bfloat16", "remat": "full", "mlp_chunks": 4}

# What is kept for the backward pass, how rows are cut, and in how many parts a step is computed.
PODS: dict[str, dict[str, dict[str, Any]]] = {
    "v5e:8x8": {
        "mesh": {"context": 4},
        "compute": {"remat": "attention"},
        "optimizer": {"num_micro_batches": 8},
    },
    "v5p:2x2x4": {
        "mesh": {"context": 2},
        "compute": {"remat": "dots"},
        "optimizer": {"num_micro_batches": 16},
    },
    "v6e:4x4": {
        "mesh": {"context": 4},
        "compute": {"remat": "projections"},
        "optimizer": {"num_micro_batches": 32},
    },
    "tpu7x:2x2x2": {
        "mesh": {"context": 2},
        "compute": {"remat": "dots"},
        "optimizer": {"num_micro_batches": 16},
    },
}


def get_config(pod: str = ""):
    """The paper's settings: 2 epochs, 128 rows of 32,768 tokens, AdamW at 2e-5, cosine.

    Ours beside them: packed rows, and 1 % of the tasks held out to evaluate on. Without a pod: what
    needs the least memory, on any mesh.
    """
    if pod and pod not in PODS:
        raise ValueError(f"--config=...:{pod}: settings are known for {', '.join(PODS)}")
    tuned = PODS.get(pod, {})
    return config.to_config_dict(
        config.TrainConfig(
            model=architecture.QWEN3["8b"],
            compute=config.ComputeConfig(**(_COMPUTE | tuned.get("compute", {}))),
            mesh=config.MeshConfig(fsdp=-1, **tuned.get("mesh", {})),
            data=config.DataConfig(
                row_length=32_768, global_batch_size=128, epochs=2.0, heldout_fraction=0.01
            ),
            optimizer=config.OptimizerConfig(
                peak_lr=2e-5, weight_decay=1e-4, warmup_fraction=0.1, **tuned.get("optimizer", {})
            ),
            log=config.LogConfig(metrics_every_steps=10, eval_every_steps=500),
        )
    )

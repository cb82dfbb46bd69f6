"""Qwen3-14B on rows of 65,536 or 131,072 tokens, with YaRN (arXiv 2309.00071).

    python -m jaxterm.train --config=configs/studies/14b_long.py:131072 --workdir=DIR \\
        --config.start.hf_dir=/models/Qwen3-14B --config.data.corpus=/data/Nemotron-Terminal-Corpus

The start's config.json must say the same rope scaling and max_position_embeddings: Qwen3's model
card tells how to set them. For v5p:4x4x4; a row lies on 2 or 4 chips (config.mesh.context).
"""

import dataclasses

from jaxterm import architecture, config

POD = "v5p:4x4x4"

# Row length -> chips a row lies on, rows of a step (4.2 million tokens), micro-batches.
LENGTHS = {"65536": (2, 64, 2), "131072": (4, 32, 2)}


def get_config(length: str = "131072"):
    """The paper's recipe but for the length; 65536 or 131072."""
    if length not in LENGTHS:
        raise ValueError(f"--config=...:{length}: the length is one of {', '.join(LENGTHS)}")
    context, rows, num_micro_batches = LENGTHS[length]
    model = dataclasses.replace(
        architecture.QWEN3["14b"],
        rope_scaling=architecture.RopeScaling(
            kind="yarn", factor=int(length) / 32_768, original_max_positions=32_768
        ),
        max_positions=int(length),
    )
    return config.to_config_dict(
        config.TrainConfig(
            model=model,
            compute=config.ComputeConfig(compute_dtype="bfloat16", remat="full", mlp_chunks=4),
            mesh=config.MeshConfig(fsdp=-1, context=context),
            data=config.DataConfig(
                row_length=int(length), global_batch_size=rows, epochs=2.0, heldout_fraction=0.01
            ),
            optimizer=config.OptimizerConfig(num_micro_batches=num_micro_batches),
            log=config.LogConfig(metrics_every_steps=10, eval_every_steps=500),
        )
    )

"""Qwen3-14B on a corpus of terminal sessions with the paper's recipe (arXiv 2602.21193, 5.1).

    python -m jaxterm.train --config=configs/14b.py --workdir=DIR \\
        --config.start.hf_dir=/models/Qwen3-14B --config.data.corpus=/data/Nemotron-Terminal-Corpus

Hardware in the paper: 32 GPUs. Here: any mesh whose data*fsdp divides 128.
"""

from jaxterm import architecture, config


def get_config():
    """The paper's settings: 2 epochs, 128 rows of 32,768 tokens, AdamW at 2e-5, cosine.

    Ours beside them: packed rows, and 1 % of the tasks held out to evaluate on.
    """
    return config.to_config_dict(
        config.TrainConfig(
            model=architecture.QWEN3["14b"],
            compute=config.ComputeConfig(compute_dtype="bfloat16", remat="full"),
            mesh=config.MeshConfig(fsdp=-1),
            data=config.DataConfig(
                row_length=32_768, global_batch_size=128, epochs=2.0, heldout_fraction=0.01
            ),
            optimizer=config.OptimizerConfig(peak_lr=2e-5, weight_decay=1e-4, warmup_fraction=0.1),
            log=config.LogConfig(metrics_every_steps=10, eval_every_steps=500),
        )
    )

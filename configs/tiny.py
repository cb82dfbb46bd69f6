"""The whole way in miniature: a random small Qwen3, trained on the sessions shipped here.

    python -m jaxterm.train --config=configs/tiny.py

Needs nothing: no accelerator, no download.
"""

from jaxterm import architecture, config


def get_config():
    """Settings for a laptop."""
    model = architecture.ModelConfig(
        vocab_size=2560,
        num_layers=3,
        embed_dim=128,
        mlp_dim=384,
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        tie_embeddings=True,
    )
    return config.to_config_dict(
        config.TrainConfig(
            model=model,
            start=config.StartConfig(random=True),
            compute=config.ComputeConfig(compute_dtype="float32", remat="dots"),
            mesh=config.MeshConfig(data=-1, fsdp=1, num_cpu_devices=2),
            data=config.DataConfig(
                corpus=("embedded",),
                row_length=4096,
                global_batch_size=2,
                epochs=2.0,
                heldout_fraction=0.1,
            ),
            optimizer=config.OptimizerConfig(peak_lr=3e-3),
            log=config.LogConfig(eval_every_steps=50, checkpoint_every_steps=50),
            export=config.ExportConfig(dtype="float32"),
        )
    )

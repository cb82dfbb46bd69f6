"""A Hugging Face folder with random weights: for tests, for benchmarks, and to train from scratch.

As transformers would save it, made tensor by tensor whatever the size.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from convert import (
    hf_metadata,
    hf_source,
    hf_writer,
    mapping,
    safetensors_io,
    source,
    staging,
    tokenizer_files,
)
from jaxterm import architecture, model


def make_random_hf_folder(
    of_model: architecture.ModelConfig,
    tokenizer_dir: str | pathlib.Path,
    output_dir: str | pathlib.Path,
    seed: int = 0,
    *,
    dtype: str = "bfloat16",
    max_shard_gb: float = 5.0,
    overwrite: bool = False,
    on_bytes: Callable[[int, int], None] | None = None,
) -> None:
    """Make a model folder whose matrices are normal (0.02) and whose norm scales are 1.

    Args:
        of_model: the architecture; `vocab_multiple` does not matter here.
        tokenizer_dir: its tokenizer files are copied.
        output_dir: is made; a failure leaves nothing there.
        seed: the same seed gives the same bytes.
        dtype: of the weights, `bfloat16` or `float32`.
        max_shard_gb: of one safetensors file, in 10**9 bytes.
        overwrite: replace a model folder that is there.
        on_bytes: called with (bytes written, bytes in all) as it goes on.

    Raises:
        ValueError: no tokenizer, or one with more tokens than the model; or `output_dir` exists.
    """
    output, tokenizer = pathlib.Path(output_dir), tokenizer_files.Tokenizer(tokenizer_dir)
    tokenizer.check_vocabulary(of_model.vocab_size)
    as_numpy = safetensors_io.dtype_named(dtype)
    total = of_model.num_params() * as_numpy.itemsize
    staging.check_space(output, total)
    count = source.ByteCounter(total, on_bytes)
    with staging.new_folder(
        output, overwrite=overwrite, is_replaceable=hf_source.is_model_folder
    ) as folder:
        folder.mkdir()
        writer = hf_writer.HfWriter(folder, of_model, dtype=as_numpy, max_shard_gb=max_shard_gb)
        for index, leaf in enumerate(mapping.leaves(of_model).values()):
            generator = np.random.Generator(np.random.Philox(key=[seed, index]))
            for region in mapping.grid(
                leaf.shape, mapping.chunk_shape(leaf.shape, as_numpy, source.CHUNK_BYTES)
            ):
                values = _values(leaf, mapping.extent(region), generator)
                writer.write(leaf, region, values)
                count.add(values.size * as_numpy.itemsize)
        tokenizer.copy_to(folder)
        texts = {
            hf_metadata.CONFIG: _config_json(of_model, tokenizer, dtype),
            hf_metadata.GENERATION_CONFIG: tokenizer.generation_config(),
        }
        for name, values in texts.items():
            (folder / name).write_text(hf_metadata.json_text(values))


def _values(
    leaf: mapping.Leaf, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    if leaf.name.endswith("scale"):
        return np.ones(shape, np.float32)
    return generator.standard_normal(shape, np.float32) * np.float32(model.INITIAL_STDDEV)


def _config_json(
    of_model: architecture.ModelConfig, tokenizer: tokenizer_files.Tokenizer, dtype: str
) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.end_of_text_id,
        "eos_token_id": tokenizer.turn_end_id,
        "initializer_range": model.INITIAL_STDDEV,
        "max_window_layers": of_model.num_layers,
        "sliding_window": None,
        "dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
    } | architecture.to_hf_json(of_model)

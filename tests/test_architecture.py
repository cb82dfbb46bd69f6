"""Architectures: the published numbers, config.json in and out, what is refused."""

import dataclasses
import json

import pytest

from jaxterm import architecture

# Parameters of Qwen/Qwen3-*, tied heads counted once, as their safetensors hold them.
PUBLISHED = {
    "0.6b": 596_049_920,
    "1.7b": 1_720_574_976,
    "4b": 4_022_468_096,
    "8b": 8_190_735_360,
    "14b": 14_768_307_200,
    "32b": 32_762_123_264,
}

# Qwen/Qwen3-8B's config.json in the form of transformers 4, which the hub's files have.
QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12288,
    "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("size", architecture.QWEN3)
def test_number_of_parameters_is_the_published_one(size):
    assert architecture.QWEN3[size].num_params() == PUBLISHED[size]


def test_published_file_is_the_tables_entry():
    assert architecture.from_hf_json(QWEN3_8B, "config.json") == architecture.QWEN3["8b"]


@pytest.mark.parametrize("size", architecture.QWEN3)
def test_writing_and_reading_is_a_round_trip(size):
    model = architecture.QWEN3[size]
    text = json.dumps(architecture.to_hf_json(model))
    assert architecture.from_hf_json(json.loads(text), "config.json") == model


@pytest.mark.parametrize(
    "scaling",
    [
        architecture.RopeScaling(kind="linear", factor=2.0),
        architecture.RopeScaling(kind="yarn", factor=4.0, original_max_positions=32_768),
        architecture.RopeScaling(
            kind="yarn", factor=2.0, original_max_positions=64, beta_fast=16.0, beta_slow=2.0,
            attention_factor=1.2,
        ),
    ],
)  # fmt: skip
def test_scaling_is_a_round_trip(scaling):
    values = QWEN3_8B | {"rope_parameters": None}
    model = architecture.from_hf_json(values, "config.json")
    model = dataclasses.replace(model, rope_scaling=scaling)
    assert architecture.from_hf_json(architecture.to_hf_json(model), "config.json") == model


def test_old_and_new_form_of_yarn_are_the_same():
    old = QWEN3_8B | {"rope_scaling": YARN}
    new = {name: x for name, x in QWEN3_8B.items() if not name.startswith("rope")}
    new["rope_parameters"] = YARN | {"rope_theta": 1e6}
    models = [architecture.from_hf_json(values, "config.json") for values in (old, new)]
    assert models[0] == models[1]
    assert models[0].rope_scaling.original_max_positions == 32_768


def test_padding_of_the_vocabulary():
    model = dataclasses.replace(architecture.QWEN3["8b"], vocab_size=1001, vocab_multiple=128)
    assert model.padded_vocab_size == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3_moe"}, r"x/config\.json is not a Qwen3 dense model: "
         r"model_type='qwen3_moe' is not supported, only 'qwen3'"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
         "rope_type='dynamic' is not supported, only 'default', 'linear' and 'yarn'"),
        ({"rope_scaling": YARN | {"mscale": 1.0}}, r"YaRN's \['mscale'\] are not supported"),
    ],
)  # fmt: skip
def test_what_is_not_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        architecture.from_hf_json(QWEN3_8B | changes, "x/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": "36"}, "num_hidden_layers='36' must be a positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True must be a positive integer"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be a positive integer"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads=0 must be"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 must be a positive integer"),
        ({"num_key_value_heads": 5},
         "num_attention_heads=32 must be a multiple of num_key_value_heads=5"),
        ({"hidden_size": None}, "hidden_size=None must be a positive integer"),
        ({"vocab_size": 1.5}, "vocab_size=1.5 must be a positive integer"),
        ({"head_dim": [128]}, r"head_dim=\[128\] must be a positive integer"),
        ({"head_dim": 127}, "head_dim=127 must be even"),
        ({"hidden_size": 16, "head_dim": None}, "head_dim=0 must be positive"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6' must be a positive number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false' must be true or false"),
        ({"rope_theta": {}}, r"rope_theta=\{\} must be a positive number"),
        ({"rope_theta": float("nan")}, "rope_theta=nan must be a positive number"),
        ({"rope_theta": 10**400}, "rope_theta=10+ must be a positive number"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta=None must be a positive number"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn' must be an object or null"),
        ({"rope_scaling": {"type": ["yarn"]}}, r"rope_scaling.rope_type=\['yarn'\] is not supp"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.factor is missing"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing"),
        ({"rope_scaling": YARN | {"factor": "4"}},
         "rope_scaling.factor='4' must be a number of at least 1"),
        ({"rope_scaling": YARN | {"factor": 0.5}},
         "rope_scaling.factor=0.5 must be a number of at least 1"),
        ({"rope_scaling": YARN | {"beta_fast": "x"}},
         "rope_scaling.beta_fast='x' must be a positive number"),
        ({"rope_scaling": YARN | {"attention_factor": []}},
         r"rope_scaling.attention_factor=\[\] must be a positive number"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": "32768"}},
         "original_max_position_embeddings='32768' must be a positive integer"),
    ],
)  # fmt: skip
def test_malformed_values_are_named(changes, message):
    with pytest.raises(ValueError, match=rf"^x/config\.json.*{message}"):
        architecture.from_hf_json(QWEN3_8B | changes, "x/config.json")


def test_all_malformed_values_are_told_at_once():
    changes = {"model_type": "llama", "hidden_size": "4096", "rope_scaling": {"type": "yarn"}}
    with pytest.raises(ValueError, match=r"'llama'.*hidden_size='4096'.*factor is missing"):
        architecture.from_hf_json(QWEN3_8B | changes, "x/config.json")


def test_all_missing_keys_are_told_at_once():
    values = {name: x for name, x in QWEN3_8B.items() if name not in ("hidden_size", "vocab_size")}
    with pytest.raises(ValueError, match=r"hidden_size is missing; vocab_size is missing"):
        architecture.from_hf_json(values, "config.json")
    without_theta = {name: x for name, x in QWEN3_8B.items() if name != "rope_theta"}
    with pytest.raises(ValueError, match="rope_theta is missing"):
        architecture.from_hf_json(without_theta, "config.json")


def test_folder_without_a_usable_file(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing: .* not a Hugging Face model"):
        architecture.from_hf_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        architecture.from_hf_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        architecture.from_hf_folder(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json"):
        architecture.from_hf_folder(tmp_path)

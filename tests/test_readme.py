"""The README's first command, as it stands, in a fresh clone; its model judged by transformers."""

import json
import os
import pathlib
import re
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def fresh_run(tmp_path_factory) -> dict:
    """summary.json of the first command of the README, run by a shell in a clone."""
    clone = tmp_path_factory.mktemp("readme") / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    first, second = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.S)[:2]
    assert first.startswith("pip install uv && uv run python -m jaxterm.train")
    assert second == "uv run pytest"
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "JAX_PLATFORMS")}
    result = subprocess.run(["bash", "-ec", first], cwd=clone, env=environment, text=True,
                            capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    summary = json.loads((clone / "runs" / "tiny" / "summary.json").read_text())
    return summary | {"stdout": result.stdout}


@pytest.mark.slow
def test_the_first_command_trains_and_exports(fresh_run):
    assert fresh_run["heldout_loss"] < 0.4 * fresh_run["heldout_loss_before"]
    assert all(after < before for before, after in fresh_run["heldout_by_source"].values())
    assert len(fresh_run["heldout_by_source"]) >= 9
    assert fresh_run["hf_dir"] in fresh_run["stdout"]


@pytest.mark.slow
@pytest.mark.oracle
def test_transformers_finds_the_reported_loss(fresh_run):
    """Every held-out session alone, by transformers' model, template and a mask from token ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = fresh_run["hf_dir"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    decoder = transformers.AutoModelForCausalLM.from_pretrained(folder)
    loss_sum, count = 0.0, 0
    for row in pq.read_table(fresh_run["heldout_corpus"]).to_pylist():
        tokens = tokenizer(rendered(tokenizer, row["conversations"]), add_special_tokens=False,
                           return_tensors="pt")["input_ids"]  # fmt: skip
        with torch.no_grad():
            log_probs = decoder(tokens).logits[0].float().log_softmax(-1)
        losses = -log_probs[torch.arange(tokens.shape[1] - 1), tokens[0, 1:]].numpy()
        targets = replies(tokenizer, tokens[0].tolist())[1:]
        loss_sum, count = loss_sum + losses[targets].sum(), count + targets.sum()
    assert loss_sum / count == pytest.approx(fresh_run["heldout_loss"], abs=1e-3)


def rendered(tokenizer, messages: list[dict[str, str]]) -> str:
    """The session with all its thinking: each turn as the template writes it when it is the last.

    A turn without thinking stands as it is, but for the last, which the template gives an empty
    block.
    """
    text = ""
    for k, message in enumerate(messages):
        so_far = tokenizer.apply_chat_template(messages[: k + 1], tokenize=False)
        is_bare = "</think>" not in message["content"] and k + 1 < len(messages)
        if message["role"] == "assistant" and is_bare:
            text += f"<|im_start|>assistant\n{message['content']}<|im_end|>\n"
        else:
            text += so_far[so_far.rindex("<|im_start|>") :]
    return text


def replies(tokenizer, tokens: list[int]) -> np.ndarray:
    """True for each token of an assistant turn, `<|im_end|>` included, its header not."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    header = [start, *tokenizer("assistant\n", add_special_tokens=False)["input_ids"]]
    mask, inside = np.zeros(len(tokens), bool), False
    for i, token in enumerate(tokens):
        if tokens[max(i - len(header), 0) : i] == header:
            inside = True
        mask[i] = inside
        inside = inside and token != end
    return mask

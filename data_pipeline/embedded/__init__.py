"""What a run needs when nothing is given: a small corpus of real terminal sessions, a tokenizer.

`sessions.parquet` holds recorded sessions in the corpus schema: what a real shell printed while
scripted solvers worked, with the reward of each task's own check.  It was made on
Debian 12 (bash 5.2, coreutils 9.1, Python 3.11, git 2.39; others word some messages differently) by

    python -m data_pipeline.recorder --output=data_pipeline/embedded/sessions.parquet \\
        --sessions=360 --seed=7

`tokenizer/` is a byte-level BPE trained on these sessions, with Qwen3's added tokens and its chat
format (the template is written by hand), made by

    python -m data_pipeline.recorder.train_tokenizer \\
        --corpus=data_pipeline/embedded/sessions.parquet --output=data_pipeline/embedded/tokenizer
"""

import pathlib

_HERE = pathlib.Path(__file__).resolve().parent


def sessions_path() -> pathlib.Path:
    """The shipped corpus, a Parquet file."""
    return _HERE / "sessions.parquet"


def tokenizer_dir() -> pathlib.Path:
    """The shipped tokenizer, a folder that AutoTokenizer.from_pretrained loads."""
    return _HERE / "tokenizer"

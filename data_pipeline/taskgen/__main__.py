"""Terminal-Task-Gen: terminal tasks from datasets, seed problems and skills (arXiv 2602.21193, 4).

    python -m data_pipeline.taskgen demo                   the whole way in miniature, with no model
    python -m data_pipeline.taskgen adapt math problems.parquet --output=tasks/math
    python -m data_pipeline.taskgen seeds seeds.jsonl --base_url=URL --model=NAME --output=tasks/a
    python -m data_pipeline.taskgen skills --count=1000 --base_url=URL --model=NAME --output=tasks/b
    python -m data_pipeline.taskgen skills --help          the flags of one command

The teacher is any server that speaks the OpenAI protocol: vLLM, SGLang, `transformers serve`, or a
hosted one, whose key is read from the environment variable named by --api_key_env.
"""

import importlib
import sys

from absl import flags

from data_pipeline import cli

COMMANDS = ("demo", "adapt", "seeds", "skills")


def main() -> None:
    """Run the command that is named first; its module defines its flags."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        print(__doc__)
        known = name in ("--help", "-h", "help", "--helpfull")
        sys.exit(0 if known else f"error: {name}: give one of {', '.join(COMMANDS)}")
    command = importlib.import_module(f"data_pipeline.taskgen.{name}")
    del sys.argv[1]
    sys.modules["__main__"].__doc__ = command.__doc__
    command.define_flags()
    flags.adopt_module_key_flags(command)  # what --help shows
    cli.run(command.main)


if __name__ == "__main__":
    main()

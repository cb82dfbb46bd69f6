"""Hugging Face folders to Orbax checkpoints and back; `python -m convert --help`."""

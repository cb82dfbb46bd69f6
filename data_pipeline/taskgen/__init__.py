"""Terminal-Task-Gen: terminal tasks from datasets, seed problems and a taxonomy of skills."""

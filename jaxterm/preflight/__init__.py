"""What can be known of a training step before the pod is started; `jaxterm.compile` shows it."""

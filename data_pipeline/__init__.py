"""The way from raw sessions to a plan of packed rows; numpy, Grain and Arrow, never jax."""

"""What `ghn_jax.benchmark` measures, shows and compares."""

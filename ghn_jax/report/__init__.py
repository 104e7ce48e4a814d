"""A report: what an evaluation found, as one HTML page; `python -m ghn_jax.report` is its command."""

"""Trained hypernetworks that come with the package, and what is known of each.

    hypernetwork = ghn_jax.load('zoo:digits-bits')

The files of this folder are read by `runs.zoo`; the command `python -m ghn_jax.zoo` lists them, shows the
card of one, and makes them of runs.
"""

"""Training: the step, the loop, and all that is due between steps."""

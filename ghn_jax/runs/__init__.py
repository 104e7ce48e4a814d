"""Run directories: checkpoints, what a run says about itself, its metrics, its predictions."""

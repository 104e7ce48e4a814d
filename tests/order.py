"""Which files are begun first: one that takes long, begun last, leaves the other processes without work."""

LONGEST = (
    'training/test_kill.py',
    'training/test_train.py',
    'assembly/test_mesh.py',
    'cnn/test_executor.py',
    'training/test_distributed.py',
    'training/test_step.py',
    'evaluation/test_evaluate.py',
    'benchmarks/test_speed.py',
    'cnn/test_executor_ops.py',
    'cnn/deploy/test_calibration.py',
    'cnn/test_noise.py',
    'benchmarks/test_benchmark.py',
)


def place_of(file: str) -> int:
    """The place of a file in the order, by its path in the folder of tests; all others have the last one."""
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)

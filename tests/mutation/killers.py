"""Which tests tell a module's mutants from the module."""

import fnmatch
import pathlib

# A pattern of modules -> patterns of test files, run in this order, cheap ones first. A module has the tests
# of all patterns that it matches, behind those named after it. Modules that match none are not mutated.
KILLERS = {
    'quant/*': ('quant/test_[!w]*.py', 'quant/test_weights.py'),
    'quant/ranges': ('assembly/test_mesh.py',),  # with devices that share the images of a network
    'networks/*': ('networks/test_*.py', 'fuzz/test_found.py', 'fuzz/test_accepted.py'),
    'networks/op*': ('hypernet/test_decoder.py', 'cnn/test_lowering.py'),
    'datasets/*': ('datasets/test_*.py',),
    'hypernet/*': ('hypernet/test_*.py',),
    'cnn/deploy/*': ('cnn/deploy/test_*.py', 'evaluation/test_evaluate.py'),
    'cnn/[!dr]*': ('cnn/test_[!er]*.py', 'quant/test_weights.py', 'cnn/test_executor.py'),
    'assembly/*': ('assembly/test_*.py', 'training/test_step*.py'),
    'training/step': ('training/test_step*.py',),
    'training/compiled': ('benchmarks/test_shared_step.py',),
    'training/sampling': ('training/test_preparation.py', 'training/test_step.py'),
    'training/running_means': ('runs/test_metrics.py',),
    'training/optimizer': (),
    'base/jsonlines': ('runs/test_metrics.py',),
    'runs/metrics': (),
    'runs/progress': (),
    'runs/checkpoint': (),
    'evaluation/protocol': ('cnn/deploy/test_calibration.py',),
    'evaluation/*': ('evaluation/test_*.py', 'reporting/test_*.py'),
    'studies/*': ('studies/test_*.py',),
}


def killers(root: pathlib.Path, module: str, table: dict[str, tuple[str, ...]] = KILLERS) -> list[str]:
    """The files of the tests of a module, as paths from `root`, in the order in which to run them."""
    folder, name = pathlib.PurePosixPath(module).parent, pathlib.PurePosixPath(module).name
    patterns = [f'{folder}/test_{name}*.py']
    for modules, files in table.items():
        patterns += files if fnmatch.fnmatch(module, modules) else ()
    tests = root / 'tests'
    found = [path.relative_to(root).as_posix() for p in patterns for path in sorted(tests.glob(p))]
    return list(dict.fromkeys(found))

"""Which tests tell a module's mutants from the module."""

import fnmatch
import pathlib

# A pattern of modules -> patterns of test files, run in this order, cheap ones first. A module has the tests
# of all patterns that it matches, behind those named after it. Modules that match none are not mutated.
KILLERS = {
    'quant/*': ('quant/test_fake_quant.py', 'quant/test_policy.py', 'quant/test_strategy.py'),
    'quant/scheme': ('quant/test_schemes.py',),
    'quant/plain': ('quant/test_weights.py', 'test_predict.py'),
    'quant/ranges': ('quant/test_weights.py',),
    'networks/*': ('networks/test_*.py', 'fuzz/test_found.py'),
    'networks/operations': ('hypernet/test_decoder.py', 'cnn/test_lowering.py'),
    'networks/limits': ('fuzz/test_accepted.py',),
    'hypernet/*': ('hypernet/test_*.py',),
    'hypernet/table': ('test_assembly.py',),
    'cnn/lowering': ('cnn/test_program.py', 'cnn/test_executor.py'),
    'cnn/p*': ('cnn/test_lowering.py', 'cnn/test_program.py', 'cnn/test_executor.py'),
    'cnn/[bt]*': ('cnn/test_program.py', 'cnn/test_executor.py'),
    'cnn/co*': ('cnn/test_program.py', 'test_memory.py', 'cnn/test_executor.py'),
    'cnn/ops': ('cnn/test_executor.py',),
    'cnn/[eh]*': ('cnn/test_noise.py', 'cnn/test_executor.py'),
    'cnn/weights': ('quant/test_weights.py', 'quant/test_schemes.py', 'cnn/test_noise.py'),
    'cnn/quantizer': ('cnn/test_noise.py', 'quant/test_schemes.py', 'cnn/test_executor.py'),
    'cnn/calibration': ('cnn/test_integer.py', 'test_evaluate.py'),
    'cnn/observer': ('cnn/test_integer.py', 'cnn/test_calibration.py'),
    'assembly/weight_buffer': ('training/test_step.py',),
    'assembly/network_batch': ('evaluation/test_selection.py', 'training/test_step.py'),
    'training/step': ('training/test_step.py', 'evaluation/test_evaluate.py'),
    'training/compiled': ('benchmarks/test_shared_step.py', 'training/test_train.py'),
    'training/sampling': ('training/test_step.py', 'training/test_train.py'),
    'evaluation/device': ('training/test_step.py', 'evaluation/test_evaluate.py'),
    'evaluation/selection': ('evaluation/test_evaluate.py',),
    'evaluation/score': ('evaluation/test_evaluate.py',),
    'evaluation/protocol': ('cnn/deploy/test_calibration.py', 'evaluation/test_evaluate.py'),
    'evaluation/results': ('reporting/test_report.py', 'evaluation/test_evaluate.py'),
    'evaluation/sensitivity': ('studies/test_study.py',),
    'training/running_means': ('runs/test_metrics.py',),
    'metrics': (),
    'records': ('test_metrics.py',),
    'training/optimizer': (),
    'checkpoint': (),
    'data': (),
    'hypernet/predict': ('runs/test_prediction.py',),
    'studies/study_runs': ('studies/test_study.py',),
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

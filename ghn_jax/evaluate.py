"""Scores networks with predicted weights at several bit-widths: a table, the same as JSON, a picture.

python -m ghn_jax.evaluate --workdir=runs/quickstart/float --splits=test,deep --json=float.json
python -m ghn_jax.evaluate --workdir=runs/quickstart/qat --splits=test,deep --against=float.json --plot=b.png
python -m ghn_jax.evaluate --workdir=runs/quickstart/qat --model=nets:resnet --bits=w32a32,w8a8

The weights of a network are predicted once and quantized to every bit-width; a hypernetwork that takes the
bits as an input predicts them anew for each. Policies beyond one bit-width for all are read from files:
--policy, see `quant/policy.py` for their format. Accuracies are in percent.

--model=package.module:function is a model of your own in place of the splits' networks (`ghn_jax.predict`
says what the function returns). --bn, --ranges and --against are for it, too. --params=FILE has
its parameters, of `ghn_jax.finetune` or `ghn_jax.predict`, in place of predicted ones, or those of the one
network of --archs; --initial scores a model with the parameters that it starts with, --seed says which.

--quantized=DIR is a network of `ghn_jax.quantize`: its bits, statistics and ranges are its own. For all but
predicted parameters --dataset gives images where there is no run.

Until all networks are scored, those that are lie in FILE.partial beside --json=FILE: an evaluation that was
stopped goes on there.
"""

import dataclasses

from absl import flags

from ghn_jax.base import cli, outputs
from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import evaluation_flags, partial
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.evaluation.model_evaluation import evaluate_model, evaluate_quantized
from ghn_jax.evaluation.results import Result
from ghn_jax.models.loading import load_model
from ghn_jax.models.tracing import trace
from ghn_jax.reporting import plotting, tables
from ghn_jax.runs import scheme_flags
from ghn_jax.runs.calibrated_file import load
from ghn_jax.runs.model_parameters import read_params

_READ = evaluation_flags.define_flags(images=True)
_MODEL = flags.DEFINE_string(
    'model', None, 'Score your own model, in place of splits: its function, PACKAGE.MODULE:FUNCTION.'
)
_PARAMS = flags.DEFINE_string(
    'params', None, 'Safetensors file with the parameters of --model, or of the one network of --archs.'
)
_INITIAL = flags.DEFINE_bool(
    'initial', False, 'Score --model with the parameters that it starts with, not with predicted ones.'
)
_QUANTIZED = flags.DEFINE_string(
    'quantized', None, 'Score the network that ghn_jax.quantize wrote to this directory, in place of splits.'
)
_OUTPUTS = outputs.define_flags(plotting.PICTURES)

_OF_NETWORKS = ('archs', 'splits', 'num_networks', 'seed', 'deepnets')
_NOT_OF_QUANTIZED = frozenset(
    (*_OF_NETWORKS, 'against', 'bits', 'policy', 'told', 'bn', 'ranges', 'range_rule')
    + ('calibration_batches', 'sqnr', 'integer')
    + tuple(scheme_flags.FIELDS)
)


def main() -> None:
    """Run the command."""
    request, written = _READ(), _OUTPUTS()
    if _INITIAL.value and (_PARAMS.value or not _MODEL.value):
        raise UserError('--initial is for --model without --params: leave it out, or give --model alone')
    if request.dataset and not (_PARAMS.value or _INITIAL.value or _QUANTIZED.value):
        raise UserError(
            '--dataset has no hypernetwork that predicts parameters: give --params, --initial or --quantized'
        )
    result, other = (
        _evaluate_quantized(_QUANTIZED.value, request)
        if _QUANTIZED.value
        else _evaluate_model(request)
        if _MODEL.value or _PARAMS.value
        else evaluate(request.load_run(), dataclasses.replace(request.spec, partial=written.partial))
    )
    result['protocol']['command'] = cli.command_line('evaluate')
    written.write(
        result,
        table=lambda result: tables.text(result, other),
        picture=lambda result, suffix: plotting.accuracy_picture(result, other, suffix=suffix),
    )
    if written.partial:
        partial.remove(written.partial)


def _evaluate_model(request: evaluation_flags.EvaluationFlags) -> tuple[Result, Result | None]:
    what = 'model' if _MODEL.value else 'params'
    for flag in _OF_NETWORKS:
        needed = flag == 'archs' and what == 'params' or flag == 'seed' and _INITIAL.value
        if flag in request.given and not needed:
            raise UserError(f'--{what} and --{flag} are both given: give one of them')
    networks = list(request.spec.networks or ())
    if not _MODEL.value and len(networks) != 1:
        raise UserError(f'--params={_PARAMS.value}: give --model, or --archs with a file of one network')
    run = request.load_run()
    shape = (1, run.config.image_size, run.config.image_size, 3)
    model = load_model(_MODEL.value, shape) if _MODEL.value else trace(networks[0], shape)
    params = read_params(model, _PARAMS.value, request.spec.policies) if _PARAMS.value else None
    params = model.initial_params(request.spec.seed) if _INITIAL.value else params
    result, other = evaluate_model(run, model, request.spec, params=params)
    if params is not None:
        result['protocol']['parameters'] = 'initial' if _INITIAL.value else _PARAMS.value
    return result, other


def _evaluate_quantized(folder: str, request: evaluation_flags.EvaluationFlags) -> tuple[Result, None]:
    own = {flag.name for flag in (_MODEL, _PARAMS) if flag.value}
    if others := own | (request.given & _NOT_OF_QUANTIZED):
        raise UserError(f'--quantized and --{min(others)} are both given: give one of them')
    return evaluate_quantized(request.load_run(), load(folder), request.spec), None


if __name__ == '__main__':
    cli.run(main, evaluation_flags.FLAG_OF)

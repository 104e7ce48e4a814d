"""Scores networks with predicted weights at several bit-widths: a table, the same as JSON, a picture.

python -m ghn_jax.evaluate --workdir=runs/quickstart/float --splits=test,deep --json=float.json
python -m ghn_jax.evaluate --workdir=runs/quickstart/qat --splits=test,deep --against=float.json --plot=b.png
python -m ghn_jax.evaluate --workdir=runs/quickstart/qat --model=nets:resnet --bits=w32a32,w8a8

The weights of a network are predicted once and quantized to every bit-width; a hypernetwork that takes the
bits as an input predicts them anew for each. Policies beyond one bit-width for all are read from files:
--policy, see `quant/policy.py` for their format. Accuracies are in percent.

--model=package.module:function is a model of your own in place of the splits' networks (`ghn_jax.predict`
says what the function returns). --bn=calibrated and --ranges=calibrated are for it, too. --initial scores it
with the parameters that it starts with, --seed says which, in place of predicted ones.
"""

from absl import flags

from ghn_jax.base import cli, outputs
from ghn_jax.base.errors import UserError
from ghn_jax.evaluation import evaluation_flags
from ghn_jax.evaluation.evaluate import evaluate
from ghn_jax.evaluation.model_evaluation import evaluate_model
from ghn_jax.evaluation.results import Result
from ghn_jax.models.loading import load_model
from ghn_jax.reporting import plotting, tables

_READ = evaluation_flags.define_flags()
_MODEL = flags.DEFINE_string('model', None, 'Model of your own, in place of splits: package.module:function.')
_INITIAL = flags.DEFINE_bool(
    'initial', False, 'Score --model with the parameters that it starts with, not with predicted ones.'
)
_OUTPUTS = outputs.define_flags(plotting.PICTURES)


def main() -> None:
    """Run the command."""
    request, written = _READ(), _OUTPUTS()
    if _INITIAL.value and not _MODEL.value:
        raise UserError('--initial is for --model: give both, or leave it out')
    result, other = (
        _evaluate(_MODEL.value, request) if _MODEL.value else evaluate(request.load_run(), request.spec)
    )
    result['protocol']['command'] = cli.command_line('evaluate')
    written.write(
        result,
        table=lambda result: tables.text(result, other),
        picture=lambda result, suffix: plotting.accuracy_picture(result, other, suffix=suffix),
    )


def _evaluate(name: str, request: evaluation_flags.EvaluationFlags) -> tuple[Result, None]:
    for flag in ('archs', 'splits', 'num_networks', 'against'):
        if flag in request.given:
            raise UserError(f'--model and --{flag} are both given: give one of them')
    run = request.load_run()
    size = run.config.image_size
    model = load_model(name, (1, size, size, 3))
    return evaluate_model(run, model, request.spec, initial=_INITIAL.value), None


if __name__ == '__main__':
    cli.run(main, evaluation_flags.FLAG_OF)

"""Writes a report on a run: one HTML page that needs nothing else, and its figures as PNGs beside it.

python -m ghn_jax.report --workdir=runs/quickstart/qat --batch_size=60 [--splits=test,deep] [--against=FILE]
python -m ghn_jax.report --workdir=runs/quickstart/qat --result=qat.json [--out=reports/qat]

The run is evaluated first, with the flags of `ghn_jax.evaluate`; with --result an evaluation already made is
reported, of which only the best network is run again. The page is DIR/report/index.html.
"""

_WITH_RESULT = {'workdir', 'archs', 'data_dir', 'devices', 'against'}  # the others are in the result

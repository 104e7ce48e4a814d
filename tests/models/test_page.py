"""The page on models of one's own says what can be run."""

import re

import numpy as np
import pytest

from tests.small_run import ROOT, write_run


@pytest.mark.slow
def test_the_code_of_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    pytest.importorskip('flatbuffers')
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / 'docs/your-model.md').read_text(), re.S | re.M)
    (folder,) = re.findall(r"load\('(.*?)'", blocks[0])
    (tmp_path / folder).parent.mkdir(parents=True)
    (tmp_path / folder).symlink_to(write_run(tmp_path / 'run'))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    logits = []
    for block in blocks:
        exec(block.replace('(1, 16, 16, 3)', '(1, 8, 8, 3)'), names)  # the images of this run
        logits.append(np.asarray(names['logits']))
    assert {x.shape for x in logits} == {(64, 10)}
    np.testing.assert_allclose(logits[-1], logits[1], atol=0.05 * np.abs(logits[1]).max())  # in StableHLO
    assert 0 < np.abs(logits[0] - logits[1]).max() < 2 * np.abs(logits[0]).max()

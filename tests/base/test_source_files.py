"""The files that a module is made of: those it imports, however the import is written, and no others."""

from ghn_jax.base.source_files import source_files

FILES = {
    'start.py': """
import ghn_jax.plain
from ghn_jax.room import module
from ghn_jax.face import name
from .beside import other
def late():
    from ghn_jax import inside
""",
    '__init__.py': 'from ghn_jax import unrelated',
    'plain.py': 'import numpy\nfrom elsewhere.ghn_jax import unrelated',
    'room/__init__.py': 'from ghn_jax import unrelated',
    'room/module.py': 'from ghn_jax.room.second import x',
    'room/second.py': 'from ghn_jax.start import late  # a circle ends',
    'face/__init__.py': 'from ghn_jax.face.behind import name',
    'face/behind.py': '',
    'beside.py': '',
    'inside.py': '',
    'unrelated.py': '',
    'names.py': 'module = name = 1',
}


def test_a_module_is_made_of_what_it_imports_and_that_imports(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / 'ghn_jax' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = source_files(tmp_path / 'ghn_jax/start.py', root=tmp_path)
    assert [path.relative_to(tmp_path / 'ghn_jax').as_posix() for path in found] == [
        'beside.py', 'face/__init__.py', 'face/behind.py', 'inside.py', 'plain.py', 'room/module.py',
        'room/second.py', 'start.py',
    ]  # fmt: skip

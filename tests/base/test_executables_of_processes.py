"""Programs of several processes that run together: compiled once, loaded by each."""

import socket
import subprocess
import sys
import textwrap

from tests.small_run import ROOT

CODE = """
    import sys
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from ghn_jax.base import executables, paths, processes
    from ghn_jax.base.recipes import Recipe

    folder, address, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
    processes.start(address, 2, process)
    mesh = Mesh(np.array(jax.devices()), ('x',))
    over = NamedSharding(mesh, PartitionSpec('x'))
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    recipe = Recipe(function=total, static={}, named='total')
    shapes = (jax.ShapeDtypeStruct((4,), np.float32, sharding=over),)
    compiled = total.lower(*shapes).compile()
    if processes.is_first():
        executables.write(paths.absolute(folder, 'out'), recipe, shapes, compiled)
    processes.barrier('written')
    executables.read_from(folder)
    own = jax.make_array_from_process_local_data(over, np.full(2, process + 1, np.float32), (4,))
    found = executables.find_or_compile(recipe, (own,))
    assert isinstance(found, jax.stages.Compiled)
    assert float(found(own).addressable_data(0)) == 6
    other = jax.make_array_from_process_local_data(over, np.ones(1, np.float32), (2,))
    assert float(executables.find_or_compile(recipe, (other,))(other).addressable_data(0)) == 2
    print('loaded')
"""


def test_what_the_first_has_written_each_of_two_processes_loads(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{s.getsockname()[1]}'
    command = [sys.executable, '-c', textwrap.dedent(CODE), str(tmp_path / 'out'), address]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'cwd': ROOT}
    running = [subprocess.Popen([*command, str(process)], **pipes) for process in range(2)]
    for each in running:
        out, errors = each.communicate(timeout=300)
        assert each.returncode == 0 and 'loaded' in out, errors
        assert errors.count('compiled anew') == errors.count('it takes arguments of other shapes') == 1

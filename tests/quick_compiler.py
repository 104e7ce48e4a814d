"""Compiler settings for tests: plainer machine code for the same operations, in a third of the time."""

import jax

OPTIONS: dict[str, int | bool] = {'xla_backend_optimization_level': 0}
OF_USERS: dict[str, int | bool] = {
    'xla_backend_optimization_level': 3,
    'xla_llvm_disable_expensive_passes': False,  # as `quick_reference` does
}
"""What users have: for tests of the code that is compiled for them."""
if jax.__version_info__ < (0, 11):  # later ones know no other emitters
    OPTIONS['xla_cpu_use_fusion_emitters'] = False
    OF_USERS['xla_cpu_use_fusion_emitters'] = True
FLAGS = ' '.join(f'--{name}={str(value).lower()}' for name, value in OPTIONS.items())
"""The same for the XLA_FLAGS of a process."""

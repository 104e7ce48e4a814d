"""Compiler flags that are worth trying on each platform, and the variable that passes them on.

Each set is tried in a process of its own: XLA reads flags only once, and ends the process at a flag that it
does not know. These flags are known to jaxlib 0.10.2 and 0.11.2, and to libtpu 0.0.42.1.
"""

from collections.abc import Mapping

_COMMANDS = 'FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION'

FLAG_SETS: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    'gpu': {
        # Loops and conditionals as nodes of CUDA graphs: else each instruction of a network asks the host.
        'graphs-with-loops': {
            'XLA_FLAGS': f'--xla_gpu_enable_command_buffer={_COMMANDS},CONDITIONAL,WHILE '
            '--xla_gpu_graph_min_graph_size=1'
        },
        'no-graphs': {'XLA_FLAGS': '--xla_gpu_enable_command_buffer='},
        'nhwc': {'XLA_FLAGS': '--xla_gpu_force_conv_nhwc=true'},
        # Sums without atomic additions: what it costs that a step repeated is the same to the bit.
        'deterministic': {'XLA_FLAGS': '--xla_gpu_deterministic_ops=true'},
        'no-triton': {'XLA_FLAGS': '--xla_gpu_enable_triton_gemm=false'},
    },
    'tpu': {
        # Smaller windows, which compile in six tenths of the time.
        'vmem-8mib': {'LIBTPU_INIT_ARGS': '--xla_tpu_scoped_vmem_limit_kib=8192'},
        'vmem-64mib': {'LIBTPU_INIT_ARGS': '--xla_tpu_scoped_vmem_limit_kib=65536'},
        'latency-hiding': {'LIBTPU_INIT_ARGS': '--xla_tpu_enable_latency_hiding_scheduler=true'},
    },
    'cpu': {
        'no-ynn-fusion': {'XLA_FLAGS': '--xla_cpu_experimental_ynn_fusion_type='},
    },
}


def environments(platform: str, present: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Give the variables to set for each flag set of a platform, by its name.

    present: the variables there are; flags in them stay, and those of the set come after.
    """
    sets = FLAG_SETS.get(platform, {})
    return {
        name: {k: f'{present.get(k, "")} {v}'.strip() for k, v in variables.items()}
        for name, variables in sets.items()
    }

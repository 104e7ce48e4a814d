"""Networks for other runtimes: their batch statistics fixed, written as StableHLO or ONNX."""

from ghn_jax.export.freezing import Frozen as Frozen
from ghn_jax.export.freezing import freeze as freeze
from ghn_jax.export.onnx_file import to_onnx as to_onnx
from ghn_jax.export.quantizing import to_quantized_onnx as to_quantized_onnx
from ghn_jax.export.runtime import run_onnx as run_onnx
from ghn_jax.export.stablehlo import to_stablehlo as to_stablehlo

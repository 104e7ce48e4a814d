"""Fake quantization: how many bits each tensor gets, its range, and the rounding itself."""

from ghn_jax.quant.grid import fake_quantize as fake_quantize
from ghn_jax.quant.policy import Policy as Policy
from ghn_jax.quant.policy import load_policy as load_policy
from ghn_jax.quant.policy import parse_bits as parse_bits
from ghn_jax.quant.ranges import min_max as min_max
from ghn_jax.quant.scheme import Scheme as Scheme

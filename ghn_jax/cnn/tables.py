"""A network as data: the integers that make a program run it, and the bits and ranges it is quantized by.

Numpy or device arrays of fixed shapes. Axes: R instructions | F floats of the weight buffer | T tensors.
Block, slot, panel: see `program`.
"""

from typing import Any, NamedTuple

ArrayOrNumpy = Any  # an array of numpy on the host, of JAX on the device

# Columns of the instruction table.
OP, SRC, DST, ACCUMULATE, WEIGHTS, SEEN, GROUP, PARTS, G_SRC, G_DST = range(10)
PAGE_BLOCKS = 256  # blocks handled at a time by loops over the weight buffer


class HeadTable(NamedTuple):
    """The classifier as int32 scalars. *_weights, *_bias: first block; rows and cols: number of panels."""

    variant: ArrayOrNumpy
    slot: ArrayOrNumpy
    parts: ArrayOrNumpy
    hidden_weights: ArrayOrNumpy
    hidden_bias: ArrayOrNumpy
    hidden_rows: ArrayOrNumpy
    hidden_cols: ArrayOrNumpy
    final_weights: ArrayOrNumpy
    final_bias: ArrayOrNumpy
    final_rows: ArrayOrNumpy
    two_layers: ArrayOrNumpy


class Tables(NamedTuple):
    """One network as data (numpy or device arrays of fixed shapes).

    Attributes:
      rows: int32 [R, 10], see the column names above; segment k owns rows bounds[k] .. bounds[k + 1].
      has_norm: float32 [].
      block_tensor: int32 [F / BLOCK], the quantized tensor a block of the weight buffer belongs to (the last
        tensor stands for "never quantized").
      n_blocks: int32 [], blocks in use.

    Output channels are numbered through all quantized tensors, in groups of GROUP_CHANNELS:
    block_channel_groups: int32 [F / BLOCK, 3], (the first group of the block's piece, how many the piece has,
    which of these the block begins with: they come round and round); channel_group_tensor: int32 [groups],
    the tensor of each.
    """

    rows: ArrayOrNumpy
    bounds: ArrayOrNumpy
    head: HeadTable
    has_norm: ArrayOrNumpy
    block_tensor: ArrayOrNumpy
    n_blocks: ArrayOrNumpy
    block_channel_groups: ArrayOrNumpy
    channel_group_tensor: ArrayOrNumpy


class Bits(NamedTuple):
    """A policy on one network: activations int32 [R, 2] for each instruction, head int32 [2], weights int32
    [T].
    """

    activations: ArrayOrNumpy
    head: ArrayOrNumpy
    weights: ArrayOrNumpy


class Ranges(NamedTuple):
    """Given ranges of activations, float: (lo, hi), lo <= 0 <= hi, of what each instruction quantizes
    [R, 2, 2], and of the inputs of the head's two layers [2, 2].
    """

    rows: ArrayOrNumpy
    head: ArrayOrNumpy


class RunnableNetwork(NamedTuple):
    """One network as the executor runs it.

    Attributes:
      weights: float [F], laid out by `Program.layout`.
      tables: integers that make the program run it.
      bits: of its tensors, of any policy, float included.
      ranges: of its activations, to which values are clipped; None for those of each batch.
    """

    weights: ArrayOrNumpy
    tables: Tables
    bits: Bits
    ranges: Ranges | None = None

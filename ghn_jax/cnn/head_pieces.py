"""The pieces of a classifier: its linear layers cut into panels, in their order in the weight buffer."""

from typing import NamedTuple

from ghn_jax.base.whole_numbers import round_up
from ghn_jax.cnn.lowering import Head
from ghn_jax.cnn.packing import BLOCK, Piece, linear_pieces, vector_piece


class HeadPieces(NamedTuple):
    """The pieces of a classifier, layer by layer in the order in which they lie in the weight buffer."""

    hidden_weights: list[Piece]
    hidden_bias: list[Piece]
    final_weights: list[Piece]
    final_bias: list[Piece]

    @property
    def all(self) -> list[Piece]:
        """Those of all layers."""
        return [p for layer in self for p in layer]


def padded_classes(num_classes: int) -> int:
    """Return the width of the last layer, padded to a multiple of 8."""
    return round_up(num_classes, 8)


def head_pieces(head: Head, num_classes: int) -> HeadPieces:
    """Cut a head's weights into panels: BLOCK inputs x BLOCK hidden units, or x all classes at last.

    hidden_* are empty for a head of one layer.
    """
    width, features, hidden_weights, hidden_bias = padded_classes(num_classes), head.features, [], []
    if head.hidden:
        hidden_weights = linear_pieces(f'{head.hidden}.weight', features, head.hidden_size, BLOCK)
        name, units = f'{head.hidden}.bias', range(0, head.hidden_size, BLOCK)
        hidden_bias = [vector_piece(name, u, min(BLOCK, head.hidden_size - u), BLOCK) for u in units]
        features = head.hidden_size
    final = linear_pieces(f'{head.final}.weight', features, num_classes, width)
    return HeadPieces(
        hidden_weights, hidden_bias, final, [vector_piece(f'{head.final}.bias', 0, num_classes, width)]
    )

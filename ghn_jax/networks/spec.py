"""NetworkSpec: everything that defines one network, frozen, and its JSON form (that of DeepNets-1M).

Conventions of the networks: stem, n_cells cells, head; two of the cells are reduction cells. Images are
IMAGE_SIZE x IMAGE_SIZE RGB. Specs are checked when they are made: a spec that exists describes a network that
can be built and whose logits depend on the image.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghn_jax.base import jsonfile
from ghn_jax.base.errors import UserError, shown
from ghn_jax.base.whole_numbers import is_int
from ghn_jax.networks.genotype import Genotype
from ghn_jax.networks.ops import has_attention

IMAGE_SIZE = 32  # pixels on a side; only flattened heads (glob_avg=False) have shapes that depend on it
VIT_SIZE = 11  # pixels on a side after the stem of networks with self-attention
MAX_NAME = 200  # bytes; it may become the name of a file, and these have 255 with what is added

# (least, most) allowed. The upper limits keep a slip of the pen from asking for gigabytes.
_LIMITS = {'C': (2, 4096), 'n_cells': (1, 512), 'fc_dim': (1, 65536), 'num_classes': (1, 65536)}
_CHOICES = {'ks': (3, 5, 7), 'stem_type': (0, 1), 'C_mult': (1, 2), 'fc_layers': (1, 2)}
_FLAGS = ('stem_pool', 'preproc', 'glob_avg')
_ADVICE = {
    'C': 'give the width of the first cells',
    'n_cells': 'give the number of cells',
    'fc_dim': 'give the width of the hidden linear layer (its value matters with fc_layers=2 only)',
    'num_classes': 'give the number of classes',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """One network of DeepNets-1M's family (arXiv 2110.13100).

    Attributes:
      C: channels of the first cells, even (a multiple of 8 with msa).
      n_cells: number of cells.
      ks: kernel size of the first convolution, 3, 5 or 7.
      stem_type: 0 (one convolution) or 1 (three).
      stem_pool: whether max pooling follows a stem of type 0.
      norm: 'bnorm', or None for no normalisation.
      preproc: whether cells start with 1x1 convolutions; without them every cell must be as wide as what
        enters it.
      C_mult: factor on the width at reduction cells, 1 or 2.
      fc_layers: linear layers of the head, 1 or 2.
      fc_dim: width between two of them.
      glob_avg: whether the head reads the mean over all pixels, else each pixel.
      genotype: the cells.
      num_classes: how many logits there are.
      name: a label, printable; no part of the network.

    Raises:
      UserError: wrong types, impossible values, shapes that do not fit, logits that the image does not reach.
    """

    C: int
    n_cells: int
    ks: int
    stem_type: int
    stem_pool: bool
    norm: str | None
    preproc: bool
    C_mult: int
    fc_layers: int
    fc_dim: int
    glob_avg: bool
    genotype: Genotype
    num_classes: int = 10
    name: str = ''

    def __post_init__(self):
        for field, (least, most) in _LIMITS.items():
            value = getattr(self, field)
            if not is_int(value) or not least <= value <= most:
                raise UserError(
                    f'{field} is {shown(value)}: expected an integer from {least} to {most:,}; '
                    f'{_ADVICE[field]}'
                )
            object.__setattr__(self, field, int(value))
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            if not is_int(value) or value not in choices:
                raise UserError(f'{field} is {shown(value)}: choose one of {", ".join(map(str, choices))}')
            object.__setattr__(self, field, int(value))
        for field in _FLAGS:
            value = getattr(self, field)
            if not isinstance(value, (bool, np.bool_)):
                raise UserError(f'{field} is {shown(value)}: expected true or false')
            object.__setattr__(self, field, bool(value))
        if self.norm is not None and self.norm != 'bnorm':
            raise UserError(f"norm is {shown(self.norm)}: expected 'bnorm', or null for no normalisation")
        if not isinstance(self.name, str):
            raise UserError(f'name is {shown(self.name)}: expected a string')
        if not self.name.isprintable() or len(self.name.encode()) > MAX_NAME:
            raise UserError(
                f'name is {shown(self.name)}: expected at most {MAX_NAME} bytes of printable characters'
            )
        if not isinstance(self.genotype, Genotype):
            raise UserError(f'genotype is {shown(self.genotype)}: expected a Genotype (in JSON an object)')
        self._check_shapes()
        self._check_connected()

    @property
    def is_vit(self) -> bool:
        """Whether the network has self-attention: then it has a stem of its own and keeps one resolution."""
        return has_attention(self.genotype.ops)

    def is_reduction(self, cell: int) -> bool:
        """Return whether a cell (counted from 0) is one of the two reduction cells."""
        return _is_reduction(cell, self.n_cells)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels inside each cell, [n_cells]; a cell's output has them once for each state it joins."""
        widths, width = [], self.C
        for cell in range(self.n_cells):
            width *= self.C_mult if self.is_reduction(cell) else 1
            widths.append(width)
        return tuple(widths)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell networks apart; the name has no part in them."""
        fields = self.to_dict()
        fields.pop('name', None)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def _check_shapes(self):
        multiple, reason = (
            (8, 'the 8 heads of msa') if self.is_vit else (2, 'strided skip connections and stems')
        )
        if self.C % multiple:
            raise UserError(f'C is {self.C}: {reason} need a multiple of {multiple}')
        if self.stem_pool and self.stem_type == 1:
            raise UserError(
                'stem_pool is True with stem_type 1, which has no pooling: set stem_pool=false or stem_type=0'
            )
        if not self.preproc and self.n_cells > 1:
            # Without preprocessing the stem is C wide, so the first cell fits; the others take what cells
            # give. Two cells or more always have a reduction cell among them.
            if self.C_mult > 1:
                raise UserError(
                    'preproc is False and C_mult is 2: nothing would widen the tensors; '
                    'set preproc=true or C_mult=1'
                )
            for reduction in {self.is_reduction(cell) for cell in range(self.n_cells - 1)}:
                _, concat = self.genotype.cell(reduction)
                if len(concat) > 1:
                    raise UserError(
                        f'preproc is False and {"reduce" if reduction else "normal"}_concat joins '
                        f'{len(concat)} states: the next cell would get {len(concat)} times its width; '
                        'set preproc=true or join one state'
                    )

    def _check_connected(self):
        if not is_connected(self.genotype, self.n_cells):
            raise UserError(
                f'network {shown(self.name)} is disconnected: its none ops keep the image from the logits; '
                'replace some of them in the genotype'
            )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, ready for JSON. `name` is left out where it is empty."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields['genotype'] = self.genotype.to_dict()
        if not self.name:
            del fields['name']
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> 'NetworkSpec':
        """Read what to_dict writes. Raises UserError on unknown or missing fields and on bad values."""
        defaults = ('num_classes', 'name')
        required = tuple(field.name for field in dataclasses.fields(cls) if field.name not in defaults)
        checked = jsonfile.object_fields('network', fields, required=required, optional=defaults)
        checked['genotype'] = Genotype.from_dict(checked['genotype'])
        return cls(**checked)

    def to_json(self) -> str:
        """Write this network as a JSON object, on one line."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> 'NetworkSpec':
        """Read what to_json writes. Raises UserError where the text is no JSON or no network."""
        if not isinstance(text, str):
            raise UserError(f'the text is {shown(text)}: expected what to_json writes')
        return cls.from_dict(jsonfile.parse(text, 'the text', 'give an object in JSON'))


def is_connected(genotype: Genotype, n_cells: int) -> bool:
    """Return whether a stack of cells passes anything of the image on to the head."""
    if 'none' not in genotype.ops:
        return True
    reached = (True, True)  # whether the image reaches the cell's two inputs
    for cell in range(n_cells):
        states = list(reached)
        entries, concat = genotype.cell(_is_reduction(cell, n_cells))
        for i in range(0, len(entries), 2):
            states.append(any(op != 'none' and states[source] for op, source in entries[i : i + 2]))
        reached = (reached[1], any(states[i] for i in concat))
    return reached[1]


def _is_reduction(cell, n_cells):
    return cell > 0 and cell in (n_cells // 3, 2 * n_cells // 3)

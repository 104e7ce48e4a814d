"""Regular expressions from somebody else: those that match a name at once, or not at all.

Python's matcher tries every way to divide a text among repeats, and there are exponentially many where one
repeat holds another: `(a+)+b` takes years on a name of 60 letters. It cannot be interrupted in a thread.
"""

import math
import re
import warnings

from ghn_jax.base.errors import UserError, shown

MAX_LENGTH = 200  # characters; the names it is matched with have up to 40
MAX_WAYS = 50_000  # to divide a name among the repeats and alternatives: a millisecond
_NAME = 40  # characters of a name

_TOKEN = re.compile(
    r"""(?P<escape>\\.) | (?P<set>\[\^?\]?(?:\\.|[^\]\\])*\]) | (?P<open>\() | (?P<close>\))
    | (?P<repeat>[*+?]|\{\d*,?\d*\}) | (?P<either>\|) | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def check_pattern(pattern: object) -> None:
    """Raise UserError unless it is a regular expression whose matching ends soon.

    Repeats of a group that holds a repeat or an alternative are refused, lookaround and references too.
    """
    if not isinstance(pattern, str) or len(pattern) > MAX_LENGTH:
        raise UserError(
            f'rule {shown(pattern)}: expected a regular expression of at most {MAX_LENGTH} characters'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of syntax that may come to mean something else
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as e:
        raise UserError(f'rule {shown(pattern)} is not a regular expression: {e}') from None
    if trouble := _trouble(pattern):
        raise UserError(f'rule {shown(pattern)} {trouble}: it might take years to match; write it plainly')


def _trouble(pattern: str) -> str | None:
    """Say what could take long. Brackets are groups here as they are for `re`, which has checked the rest."""
    if re.search(r'\(\?(?!:)|\\[1-9]', pattern):
        return 'has a group other than (...) and (?:...), or a reference'
    variable = [False]  # for each open group: whether it holds a repeat or an alternative
    closed = False  # whether the last token closed a group that does
    unbounded = choices = 0  # repeats without a bound; times that one of two is chosen
    for token in _TOKEN.finditer(pattern.replace('(?:', '(')):
        kind, text = token.lastgroup, token.group()
        if kind == 'repeat':
            low, comma, high = text.strip('{}').partition(',')
            if text == '{}':  # as it stands; {,} is any number
                continue
            most = _NAME if text in '*+' or (comma and not high) else 1 if text == '?' else int(high or low)
            if closed and most > 1:
                return 'repeats a group that holds a repeat or an alternative'
            unbounded += text != '?' and not text.strip('{}').isdigit()
            choices += text == '?'
            variable[-1] = True
        closed = False
        if kind == 'open':
            variable.append(False)
        elif kind == 'close' and len(variable) > 1:
            closed = variable.pop()
            variable[-1] |= closed
        elif kind == 'either':
            variable[-1] = True
            choices += 1
    ways = math.comb(_NAME + unbounded, unbounded) << choices
    return f'has too many repeats and alternatives ({ways:,} ways)' if ways > MAX_WAYS else None

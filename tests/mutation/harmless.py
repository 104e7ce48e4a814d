"""Changes that no test can notice, for they change no result: they are not drawn.

(module, what stands there, what takes its place) -> why it is harmless. Text, not line numbers: those move.
"""

HARMLESS: dict[tuple[str, str, str], str] = {}

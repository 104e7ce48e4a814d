"""Changes that no test can notice, for they change no result: they are not drawn.

(module, what stands there, what takes its place) -> why it is harmless. Text, not line numbers: those move.
"""

# JAX drops updates out of bounds unless told otherwise; the code says so for its readers.
_DROPPING = (
    'h.at[b, v].set(h_new',
    'sent.at[b, v].set(_messages(params, h_new)',
    'received.at[b, v].set(m',
    'g_sent.at[b, v].set(g_s',
    'g_new.at[b, v].set(g_n',
    'g_received.at[b, v].set(to_received(g_n)[0]',
    'g_untouched.at[b, v].set(0',
)

HARMLESS: dict[tuple[str, str, str], str] = {
    ('hypernet/gnn', f"{call}, mode='drop')", f'{call})'): "'drop' is the default" for call in _DROPPING
}

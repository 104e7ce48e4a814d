"""Models of the user's own: traced to a graph and layers, run with a quantizer, given predicted weights."""

"""Compiling ahead of time, for the devices that are here and for others, and reading what came of it."""

"""The first hour on a new accelerator: checks and measurements, one process for each."""

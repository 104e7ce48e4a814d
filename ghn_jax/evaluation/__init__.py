"""Scoring networks with predicted weights, and results as data."""

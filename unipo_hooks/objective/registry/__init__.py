"""Algorithms and what is said of their parts, as JSON."""

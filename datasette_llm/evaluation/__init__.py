"""Evaluations: models compared on the same cases."""

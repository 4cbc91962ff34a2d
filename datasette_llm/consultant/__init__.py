"""Advice about a table: its profile, what a model makes of it, and the checks of that."""

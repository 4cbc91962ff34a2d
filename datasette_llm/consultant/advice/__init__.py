"""Advice about a table, its claims checked."""

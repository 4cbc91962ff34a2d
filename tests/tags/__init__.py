"""Tests of `datasette_llm/tags`."""

"""The commands `datasette llm …`."""

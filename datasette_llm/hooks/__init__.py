"""The hooks that datasette-llm offers to other plugins, and how they are called."""

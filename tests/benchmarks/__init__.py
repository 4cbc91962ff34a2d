"""What datasette-llm costs, measured beside llm itself: `python -m tests.benchmarks`."""

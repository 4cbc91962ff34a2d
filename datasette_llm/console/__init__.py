"""The administrators' pages at /-/llm."""

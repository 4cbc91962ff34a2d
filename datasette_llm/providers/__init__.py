"""What llm knows, made usable: models, their clients and their failures."""

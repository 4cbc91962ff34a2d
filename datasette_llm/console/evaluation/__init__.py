"""The pages for choosing a model with evidence."""

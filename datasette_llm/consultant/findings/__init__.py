"""What is remarkable about a table, found by code alone."""

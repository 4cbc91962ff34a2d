"""What a table holds, measured within a time limit."""

"""The operator's console: what is available to whom and why, assigned, tested and explained."""

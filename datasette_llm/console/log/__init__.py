"""The pages of the call log."""

"""The pages of the consultant: analyze a table, read the advice."""

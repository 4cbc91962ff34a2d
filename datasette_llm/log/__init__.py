"""The call log: a row for each request, in the internal database; and what is computed of it."""

"""Which model, for whom, with which key, and under which call policy."""

"""Every call on the record: what was asked of which model for whom, and what came of it."""

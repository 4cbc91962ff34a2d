"""Many calls at once, with faults among them: everything that was counted has to be equal."""

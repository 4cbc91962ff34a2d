"""The Usage page: what calls cost, how many there are, how many fail and how long they take."""

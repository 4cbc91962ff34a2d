"""Tags: what a call is tied to, by its caller and by the request of Datasette that caused it."""

"""`datasette.yaml`, read once into frozen, typed settings."""

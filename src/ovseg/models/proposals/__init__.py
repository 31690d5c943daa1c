"""Networks that propose masks."""

"""Classification and open-set metrics on arrays."""

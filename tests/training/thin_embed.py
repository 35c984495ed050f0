"""`facelt embed` of models with the thin backbone."""

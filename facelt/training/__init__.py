"""Training runs: recipe, trainer, optimiser, checkpoints, logs."""

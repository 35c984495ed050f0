"""Training and evaluating: the loop, its optimiser, checkpoints and what is handed on."""

"""Training methods: the forward pass and the loss of one step."""

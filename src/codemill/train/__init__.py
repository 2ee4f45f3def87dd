"""Training: losses, optimiser, checkpoints and one loop."""

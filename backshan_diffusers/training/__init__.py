"""Training: configs, small models from nothing, caches, steps, checkpoints."""

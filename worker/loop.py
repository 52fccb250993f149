"""The training loop, to be read like prose."""

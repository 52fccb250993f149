"""What is due at a step. Pure."""

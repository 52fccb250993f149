"""Model architectures and their configurations."""

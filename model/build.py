"""From a configuration to a model."""

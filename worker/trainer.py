"""The composition of one training process."""

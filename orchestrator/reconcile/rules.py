"""The decision itself."""

"""Which text becomes which batch."""

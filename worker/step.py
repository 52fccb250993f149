"""One optimizer update, compiled."""

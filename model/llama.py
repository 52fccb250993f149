"""The Llama-style decoder."""

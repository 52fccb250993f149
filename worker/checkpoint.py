"""Saves and restores that can be proven."""

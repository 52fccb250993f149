"""Carries out the actions of a plan."""

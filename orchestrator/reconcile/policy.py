"""Verdicts, budgets and backoff."""

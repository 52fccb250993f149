"""Load, decide, commit, execute, wait."""

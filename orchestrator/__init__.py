"""The control plane: keeps the state of every run and decides what happens next."""

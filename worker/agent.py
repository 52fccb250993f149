"""The per-host supervisor: spawn, watch, spool, report, obey. Must not import JAX."""

"""The database: tables, reads, and writes that are fenced by the leader lease."""

"""The command line: one file a group of commands, all of them thin over `orchestrator.client`.

Modules here import nothing heavy at the top, so that `longhaul --help` is instant: the client,
Rich and the schemas are imported by the commands that use them.
"""

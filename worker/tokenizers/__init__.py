"""How text becomes ids: bytes, characters, and what the libraries of the field read.

The libraries are optional and imported where they are used; nothing is ever downloaded. Must not
import JAX.
"""

"""From files of text to shards: what `longhaul data` does, in a process of its own.

First each input becomes a part, then the parts become shards. Every part and every shard follows
from the request alone and appears whole or not at all, so a kill costs at most the pieces that were
being made, and the bytes are the same whoever made them. Must not import JAX.
"""

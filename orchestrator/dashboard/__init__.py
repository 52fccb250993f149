"""The pages that people look at: a thin view over what the API can read.

Owns words, shapes and pictures, and no facts: everything shown comes through `reader.Reader`.
Must not import the store, a provider, the loop or the decision core.
"""

"""The decision core: a pure function from everything that is known of a run to what to do next."""

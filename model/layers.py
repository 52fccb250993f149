"""The parts that every architecture is made of."""

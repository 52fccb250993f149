"""Measurements, each with what it is compared with in the same run. Not part of the product."""

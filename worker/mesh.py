"""Devices, meshes and shardings."""

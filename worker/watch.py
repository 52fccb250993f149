"""Rules that notice trouble in what a step tells. Pure."""

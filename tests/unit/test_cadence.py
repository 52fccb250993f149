"""How often an attempt saves: the interval that loses least, and the arithmetic that is told."""

from __future__ import annotations

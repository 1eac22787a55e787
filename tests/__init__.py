"""The tests: a folder for each wing of the package, and what they share."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

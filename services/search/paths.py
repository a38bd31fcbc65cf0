"""Where the service keeps its files."""

from pathlib import Path

MIGRATIONS = Path(__file__).parent / "migrations"

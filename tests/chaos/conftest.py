from tests.support.desk import database, desk

__all__ = ["database", "desk"]

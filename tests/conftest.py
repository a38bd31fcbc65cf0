"""Fixtures that every kind of test may ask for."""

from tests.support.stack import stack, topic

__all__ = ["stack", "topic"]

"""The handlers, a file per noun."""

"""The API told to people and tools: OpenAPI and the reference page."""

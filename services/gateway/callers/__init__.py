"""Who asks: sessions and API keys."""

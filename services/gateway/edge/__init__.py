"""What a public server owes browsers, proxies and slow clients."""

"""The services behind: which instance, how long, how often."""

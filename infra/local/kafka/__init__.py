"""Apache Kafka for the embedded stack: its jars and its one broker."""

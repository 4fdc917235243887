"""Tables and lists of others: CSV, parquet, JSON, plain lines."""

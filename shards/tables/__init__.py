"""Tables and lists made elsewhere: CSV, parquet, JSON, plain lines."""

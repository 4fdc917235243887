"""A packed data set on disk: shards, tables, manifest."""

"""Sources of rows: files of JSON, Parquet and Arrow, folders, shards, WebDataset archives, the hub."""

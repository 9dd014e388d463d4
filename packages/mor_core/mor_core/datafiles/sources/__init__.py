"""Where rows come from: files of JSON, Parquet and Arrow, folders, shards, WebDataset archives, the hub."""

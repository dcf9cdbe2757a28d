"""A query's rows as files that other programs read: WebDataset tars, Parquet, a folder."""

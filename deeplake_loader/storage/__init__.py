"""Bytes that lie elsewhere: objects by url on any store fsspec reaches, retried and counted, behind a local cache."""

"""Files behind addresses that fsspec knows, such as s3://bucket/corpus."""

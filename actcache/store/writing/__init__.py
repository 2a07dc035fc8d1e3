"""A store while it is written: its contents, its place, its shards and their receipts, its end."""

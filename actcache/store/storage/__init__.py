"""Where the bytes of a store lie: files, written atomically and mapped into memory."""

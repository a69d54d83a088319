"""Keys of tokens that stand behind URLs: fetched here, kept on disk, told to workers. No worker ever asks anybody."""

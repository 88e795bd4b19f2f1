"""How texts become vectors: the Embedder protocol and its adapters, one file each."""

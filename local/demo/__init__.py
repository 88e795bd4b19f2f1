"""The whole way once: real files through the real supabase-js into a search with citations."""

"""scripts/deploy: brings a Supabase project to what this checkout holds, step by step, and says what it did."""

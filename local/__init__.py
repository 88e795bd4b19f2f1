"""The embedded Supabase for laptops, tests and the demo; never deployed."""

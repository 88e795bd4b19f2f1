"""What can go wrong with the embedded Supabase."""


class StackError(Exception):
    """Something the stack needs could not be installed, made or started; the message says what to do."""

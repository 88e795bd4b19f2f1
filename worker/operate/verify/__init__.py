"""`sluice verify`: the acceptance documents through a whole target, every artifact checked, and two runs compared."""

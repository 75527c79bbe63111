"""The suite that every tier passes, in parts: pytest classes to derive from."""

"""Conversations: reading them from what people have, and splitting them without leaks. Entry: `stage.collect`."""

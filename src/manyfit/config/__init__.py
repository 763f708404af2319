"""What a user may say: the schema, how what it names is built, and what must never be written down."""

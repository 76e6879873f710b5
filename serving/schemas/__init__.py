"""Request and response bodies. Requests refuse unknown fields and coerce no types."""

"""An OpenAI-compatible HTTP server over one engine, with the mask chosen per request."""

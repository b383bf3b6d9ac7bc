"""The engine host: engine, link and own port."""

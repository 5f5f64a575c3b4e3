"""The HTTP API of orchestratord: a Falcon ASGI application."""

"""Memories behind HTTP: an engine that owns the models, and a server that any OpenAI client can use."""

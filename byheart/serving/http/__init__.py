"""Routes, bodies and bounds: what a server says over HTTP, about an engine and a store that it is given."""

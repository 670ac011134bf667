"""What goes over the wire: bodies, objects and events, as values."""

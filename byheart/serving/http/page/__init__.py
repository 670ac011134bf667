"""The web page of a memory server: files of plain HTML, CSS and JavaScript, and the routes that serve them."""

from byheart.serving.http.page.routes import page_routes

__all__ = ["page_routes"]

"""The pages, one module each, drawn by ``draw(view)``."""

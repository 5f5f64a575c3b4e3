"""Services decide and append: they read projections and never edit them."""

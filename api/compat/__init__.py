"""Routes that other APIs' clients speak; every module here is found and served."""

"""Our own routes, a module per resource; every module here is found and served."""

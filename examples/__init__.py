"""Short, real runs; `unipo-hooks demo` runs one of them."""

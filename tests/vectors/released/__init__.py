"""Cases made of released code, by where it is from; `tests/vectors/from_released.py` writes them."""

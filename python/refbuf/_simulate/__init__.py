"""What `python -m refbuf lab simulate` is made of."""

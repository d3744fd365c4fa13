"""What `python -m refbuf lab run` and `lab report` are made of."""

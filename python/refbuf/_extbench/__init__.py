"""What `python -m refbuf bench --extensions` is made of: packages of others, stock and with the shim."""

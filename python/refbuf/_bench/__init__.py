"""What `python -m refbuf bench` is made of: measuring, the report, the picture."""

"""What `python -m refbuf bench --python` is made of: programs of Python, each as it is and in live mode."""

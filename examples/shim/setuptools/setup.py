import refbuf
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("codebook", ["codebook.c"], include_dirs=[refbuf.get_shimdir()]),
    ],
)

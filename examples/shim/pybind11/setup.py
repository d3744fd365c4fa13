import refbuf
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension("codebook", ["codebook.cpp"], cxx_std=17, include_dirs=[refbuf.get_shimdir()]),
    ],
)

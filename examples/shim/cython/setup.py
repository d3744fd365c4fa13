import refbuf
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [Extension("codebook", ["codebook.pyx"], include_dirs=[refbuf.get_shimdir()])],
    ),
)

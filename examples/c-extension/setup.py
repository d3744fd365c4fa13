"""All that is special: where refbuf.h is."""

import pathlib

import refbuf
from setuptools import Extension, setup

include = pathlib.Path(refbuf.get_include())

setup(
    ext_modules=[
        Extension(
            "word_index",
            sources=["engine.c", "word_index.c", "words.c"],
            include_dirs=[str(include)],
            depends=["engine.h", "words.h", *map(str, include.glob("refbuf*.h"))],
            extra_compile_args=["-std=c11", "-Wall", "-Wextra", "-pthread", "-fvisibility=hidden"],
            extra_link_args=["-pthread"],
        )
    ]
)

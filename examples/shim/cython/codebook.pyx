# cython: language_level=3, freethreading_compatible=True
"""Byte strings that stand for lists of shared values."""


cdef class Codebook:
    """A table of values, for codes from 0 to 255."""

    cdef tuple values

    def __cinit__(self, values):
        self.values = tuple(values)

    def decode(self, bytes codes not None):
        """The values of the codes, as a list."""
        cdef unsigned char code
        return [self.values[code] for code in codes]

    def find(self, bytes codes not None, wanted):
        """The first place of a value among the codes', or -1."""
        cdef unsigned char code
        cdef Py_ssize_t place = 0
        for code in codes:
            if self.values[code] == wanted:
                return place
            place += 1
        return -1

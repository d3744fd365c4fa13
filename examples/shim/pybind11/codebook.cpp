// codebook: a table of objects, and byte strings that say which of them are meant.
//
//     book = codebook.Codebook(values)
//     book.decode(b"\0\2\2")      [values[0], values[2], values[2]]
//     book.find(b"\0\2\2", value) the first place of a value, or -1
//
// All threads that decode with one table count references to the same few objects.

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string_view>

namespace py = pybind11;

class Codebook {
public:
    explicit Codebook(const py::iterable &given) : values(given) {}

    py::list decode(std::string_view codes) const
    {
        py::list list;
        for (unsigned char code : codes) {
            list.append(value_of(code));
        }
        return list;
    }

    std::ptrdiff_t find(std::string_view codes, const py::object &wanted) const
    {
        for (std::size_t place = 0; place < codes.size(); place++) {
            if (value_of(static_cast<unsigned char>(codes[place])).equal(wanted)) {
                return static_cast<std::ptrdiff_t>(place);
            }
        }
        return -1;
    }

private:
    py::object value_of(unsigned char code) const
    {
        if (code >= values.size()) {
            throw py::index_error("a code is not in the table");
        }
        return values[code];
    }

    py::tuple values;
};

PYBIND11_MODULE(codebook, module, py::mod_gil_not_used())
{
    module.doc() = "Byte strings that stand for lists of shared values.";
    py::class_<Codebook>(module, "Codebook", "A table of values, for codes from 0 to 255.")
        .def(py::init<const py::iterable &>())
        .def("decode", [](const Codebook &book, const py::bytes &codes) { return book.decode(codes); })
        .def("find", [](const Codebook &book, const py::bytes &codes, const py::object &wanted) {
            return book.find(codes, wanted);
        });
}

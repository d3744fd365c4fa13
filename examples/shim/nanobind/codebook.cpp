// codebook: a table of objects, and byte strings that say which of them are meant.
//
//     book = codebook.Codebook(values)
//     book.decode(b"\0\2\2")      [values[0], values[2], values[2]]
//     book.find(b"\0\2\2", value) the first place of a value, or -1
//
// All threads that decode with one table count references to the same few objects.

#include <nanobind/nanobind.h>

#include <cstddef>

namespace nb = nanobind;

class Codebook {
public:
    explicit Codebook(nb::iterable given) : values(nb::tuple(given)) {}

    nb::list decode(nb::bytes codes) const
    {
        nb::list list;
        for (std::size_t place = 0; place < codes.size(); place++) {
            list.append(value_of(codes, place));
        }
        return list;
    }

    std::ptrdiff_t find(nb::bytes codes, nb::object wanted) const
    {
        for (std::size_t place = 0; place < codes.size(); place++) {
            if (value_of(codes, place).equal(wanted)) {
                return static_cast<std::ptrdiff_t>(place);
            }
        }
        return -1;
    }

private:
    nb::object value_of(const nb::bytes &codes, std::size_t place) const
    {
        auto code = static_cast<unsigned char>(codes.c_str()[place]);
        if (code >= values.size()) {
            throw nb::index_error("a code is not in the table");
        }
        return values[code];
    }

    nb::tuple values;
};

NB_MODULE(codebook, module)
{
    module.doc() = "Byte strings that stand for lists of shared values.";
    nb::class_<Codebook>(module, "Codebook", "A table of values, for codes from 0 to 255.")
        .def(nb::init<nb::iterable>())
        .def("decode", &Codebook::decode)
        .def("find", &Codebook::find);
}

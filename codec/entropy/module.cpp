// The library is reached through ctypes; the module exists so that the build system can treat it as an extension.
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_native", "Entropy coder core; see native.py.", 0,
                                        nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&module_definition); }

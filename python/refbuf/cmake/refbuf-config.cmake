# find_package(refbuf): where refbuf's headers are.
#
#   refbuf::headers    refbuf.h, for sources that include it
#   refbuf::shim       a Python.h that counts through refbuf, for sources as they are
#   refbuf_INCLUDE_DIR, refbuf_SHIM_DIR    their directories
#
# There is nothing to link: extensions find refbuf when they are imported.

get_filename_component(refbuf_INCLUDE_DIR "${CMAKE_CURRENT_LIST_DIR}/../include" ABSOLUTE)
set(refbuf_SHIM_DIR "${refbuf_INCLUDE_DIR}/shim")

foreach(_refbuf_file IN ITEMS "${refbuf_INCLUDE_DIR}/refbuf.h" "${refbuf_SHIM_DIR}/Python.h")
  if(NOT EXISTS "${_refbuf_file}")
    set(${CMAKE_FIND_PACKAGE_NAME}_FOUND FALSE)
    set(${CMAKE_FIND_PACKAGE_NAME}_NOT_FOUND_MESSAGE "${_refbuf_file} is not there: reinstall refbuf")
  endif()
endforeach()
unset(_refbuf_file)
if(DEFINED ${CMAKE_FIND_PACKAGE_NAME}_FOUND AND NOT ${CMAKE_FIND_PACKAGE_NAME}_FOUND)
  return()
endif()

if(NOT TARGET refbuf::headers)
  add_library(refbuf::headers INTERFACE IMPORTED)
  set_target_properties(refbuf::headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${refbuf_INCLUDE_DIR}")
endif()

# Imported targets' directories are system directories by default, which the compiler
# searches after all others, and these in the order of linking: Python::Module's would come
# first. As a plain -I the shim's comes before them. (IMPORTED_NO_SYSTEM: CMake 3.23 and
# 3.24; SYSTEM: later ones.) Where NO_SYSTEM_FROM_IMPORTED is set, all are plain, and Python's
# come first: target_include_directories(TARGET BEFORE PRIVATE ${refbuf_SHIM_DIR}) there.
if(NOT TARGET refbuf::shim)
  add_library(refbuf::shim INTERFACE IMPORTED)
  set_target_properties(refbuf::shim PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${refbuf_SHIM_DIR}"
    IMPORTED_NO_SYSTEM ON
    SYSTEM OFF)
endif()

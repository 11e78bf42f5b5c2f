# ONNX Runtime's C API: the imported target OnnxRuntime::OnnxRuntime.
#
# Looked for, in this order:
#   ONNXRUNTIME_ROOT (variable or environment): a folder with include/ and lib/, as releases have it;
#   the distribution's packages, or wherever CMAKE_PREFIX_PATH leads;
#   the library of an installed Python wheel (of ONNXRUNTIME_PYTHON, or the python3 on the PATH).
#     A wheel has no headers: give ONNXRUNTIME_INCLUDE_DIR. The C API is versioned, so those of an
#     older release do. It lacks the link that is named as the library's SONAME, too; a folder with
#     that link is made in the build tree.
#
# Sets OnnxRuntime_FOUND, ONNXRUNTIME_LIBRARY, ONNXRUNTIME_INCLUDE_DIR.

set(_hints ${ONNXRUNTIME_ROOT} $ENV{ONNXRUNTIME_ROOT})

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
  HINTS ${_hints}
  PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session onnxruntime
                onnxruntime/core/session)
find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS ${_hints} PATH_SUFFIXES lib lib64)

if(NOT ONNXRUNTIME_LIBRARY)
  if(NOT ONNXRUNTIME_PYTHON)
    find_program(ONNXRUNTIME_PYTHON python3)
  endif()
  if(ONNXRUNTIME_PYTHON)
    execute_process(
      COMMAND ${ONNXRUNTIME_PYTHON} -c
        "import importlib.util as u, pathlib as p
s = u.find_spec('onnxruntime')
print(*sorted((p.Path(s.origin).parent / 'capi').glob('libonnxruntime.so.*')) if s else '', end='')"
      OUTPUT_VARIABLE _wheel_library ERROR_QUIET)
    if(_wheel_library)
      set(_links ${CMAKE_BINARY_DIR}/onnxruntime/lib)
      file(MAKE_DIRECTORY ${_links})
      file(CREATE_LINK ${_wheel_library} ${_links}/libonnxruntime.so.1 SYMBOLIC)
      file(CREATE_LINK libonnxruntime.so.1 ${_links}/libonnxruntime.so SYMBOLIC)
      set(ONNXRUNTIME_LIBRARY ${_links}/libonnxruntime.so CACHE FILEPATH "" FORCE)
    endif()
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime
  REQUIRED_VARS ONNXRUNTIME_LIBRARY ONNXRUNTIME_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "set ONNXRUNTIME_ROOT to a folder with include/ and lib/, or run scripts/native")

if(OnnxRuntime_FOUND AND NOT TARGET OnnxRuntime::OnnxRuntime)
  add_library(OnnxRuntime::OnnxRuntime SHARED IMPORTED)
  set_target_properties(OnnxRuntime::OnnxRuntime PROPERTIES
    IMPORTED_LOCATION ${ONNXRUNTIME_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${ONNXRUNTIME_INCLUDE_DIR})
endif()
mark_as_advanced(ONNXRUNTIME_INCLUDE_DIR ONNXRUNTIME_LIBRARY ONNXRUNTIME_PYTHON)

# Sets SPECPLUG_OPS_SOURCES, with the flags they need; empty where the operators are not written for.
set(SPECPLUG_OPS_SOURCES "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(SPECPLUG_OPS_SOURCES
    ${CMAKE_CURRENT_LIST_DIR}/custom_op.cpp ${CMAKE_CURRENT_LIST_DIR}/row_product.cpp)
  set(_flags -O3 -ffp-contract=off -mavx512f -mavx512bw -mavx512vl -mavx512vnni)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    list(APPEND _flags -Wno-maybe-uninitialized)  # GCC 12 about its own intrinsics
  endif()
  set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/row_product.cpp PROPERTIES
    COMPILE_OPTIONS "${_flags}")
endif()

# The Python package's compiled half, and what a wheel holds beside python/whit: included where WHIT_PYTHON is on, which
# scikit-build-core (pyproject.toml) sets. Every object of the library is compiled as for the program, so that ccache has it.

find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module OPTIONAL_COMPONENTS Development.SABIModule)
execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT COMMAND_ERROR_IS_FATAL ANY)
find_package(nanobind CONFIG REQUIRED)

file(GLOB WHIT_PYTHON_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/python/*.cc)
nanobind_add_module(_native NB_STATIC STABLE_ABI NOMINSIZE ${WHIT_PYTHON_SOURCES})
target_link_libraries(_native PRIVATE whit_core)
# nanobind hides its types; the classes of ours that hold them are not for other libraries either.
target_compile_options(_native PRIVATE -fvisibility=hidden -Wno-shadow)  # nanobind's headers shadow

# The wheel carries the shared libraries that it needs beyond the C and C++ run-time: it runs where none is installed.
set(WHIT_BUNDLE "")
foreach(library IN ITEMS "${ONIGURUMA_LIBRARY}" "${UTF8PROC_LIBRARY}" "${XXHASH_LIBRARY}" "${OPENSSL_SSL_LIBRARY}"
        "${OPENSSL_CRYPTO_LIBRARY}" "$<TARGET_FILE:fmt::fmt>")
  if(NOT library MATCHES "\\.a$")
    list(APPEND WHIT_BUNDLE "${library}")
  endif()
endforeach()
set_target_properties(_native PROPERTIES INSTALL_RPATH "$ORIGIN/lib" BUILD_WITH_INSTALL_RPATH ON)
set_target_properties(whit whit_c PROPERTIES INSTALL_RPATH "$ORIGIN/../lib" BUILD_WITH_INSTALL_RPATH ON)
install(TARGETS _native LIBRARY DESTINATION whit COMPONENT python)
install(TARGETS whit RUNTIME DESTINATION whit/bin COMPONENT python)
install(TARGETS whit_c LIBRARY DESTINATION whit/lib COMPONENT python NAMELINK_SKIP)
install(FILES ${PROJECT_SOURCE_DIR}/include/whit/whit.h DESTINATION whit/include/whit COMPONENT python)
install(CODE "
  foreach(library IN ITEMS ${WHIT_BUNDLE})
    get_filename_component(real \"\${library}\" REALPATH)
    execute_process(COMMAND \"${CMAKE_OBJDUMP}\" -p \"\${real}\" OUTPUT_VARIABLE headers COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCH \"SONAME +([^\\n ]+)\" found \"\${headers}\")
    file(INSTALL DESTINATION \"\${CMAKE_INSTALL_PREFIX}/whit/lib\" TYPE FILE RENAME \"\${CMAKE_MATCH_1}\" FILES \"\${real}\")
  endforeach()" COMPONENT python)

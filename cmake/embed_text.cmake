# Embeds data/ and the chat page into the program: defines WHIT_EMBEDDED_SOURCE, a generated source of src/base/embedded.h, made again when a
# text changes. Run as a script (cmake -DOUTPUT=… -P), the same file writes that source: generating needs no other tool.

get_filename_component(data "${CMAKE_CURRENT_LIST_DIR}/../data" ABSOLUTE)
set(functions calib_prompts eval_text eval_prose eval_code eval_dialogue eval_german chat_page)
set(calib_prompts ${data}/calib/prompts.jsonl)
set(chat_page "${CMAKE_CURRENT_LIST_DIR}/../src/server/web/index.html")
set(eval_text ${data}/eval/prose.txt ${data}/eval/code.txt ${data}/eval/dialogue.txt)
foreach(part prose code dialogue german)
  set(eval_${part} ${data}/eval/${part}.txt)
endforeach()

if(CMAKE_SCRIPT_MODE_FILE)
  set(code "// Generated from data/ by cmake/embed_text.cmake.\n#include \"base/embedded.h\"\n\nnamespace whit::embedded {\n")
  foreach(function IN LISTS functions)
    set(hex "")
    foreach(file IN LISTS ${function})
      file(READ "${file}" content HEX)
      string(APPEND hex "${content}")
    endforeach()
    string(LENGTH "${hex}" digits)
    math(EXPR size "${digits} / 2")
    string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${hex}")
    string(APPEND code "\nstatic constexpr char k_${function}[] = {${bytes}};\n"
      "std::string_view ${function}() { return {k_${function}, ${size}}; }\n")
  endforeach()
  file(WRITE "${OUTPUT}" "${code}\n}  // namespace whit::embedded\n")
  return()
endif()

set(WHIT_EMBEDDED_SOURCE "${CMAKE_BINARY_DIR}/embedded.cc")
add_custom_command(
  OUTPUT ${WHIT_EMBEDDED_SOURCE}
  COMMAND ${CMAKE_COMMAND} "-DOUTPUT=${WHIT_EMBEDDED_SOURCE}" -P "${CMAKE_CURRENT_LIST_FILE}"
  DEPENDS ${calib_prompts} ${eval_text} ${eval_german} ${chat_page} "${CMAKE_CURRENT_LIST_FILE}"
  COMMENT "Embedding data/" VERBATIM)

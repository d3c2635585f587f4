// libFuzzer target: the text files of a Hugging Face directory whose weights are good. Five parts
// with a zero byte between them: model.safetensors.index.json, tokenizer_config.json,
// generation_config.json, chat_template.json, config.json (empty: a good one). It is refused with
// an Error, or opens, and no file outside is read for a tensor.
#include <cstdlib>
#include <fstream>

#include "fuzz/support.h"

namespace {

namespace fs = std::filesystem;
using namespace whit;

std::string safetensors() {
  const std::string header =
      R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})" + std::string(2, ' ');
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(8, '\1');
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Directory scratch;
  const fs::path folder = scratch.path / "model";
  fs::create_directory(folder);
  const auto write = [](const fs::path& path, std::string_view content) {
    std::ofstream(path, std::ios::binary) << content;
  };
  static const std::string weights = safetensors();
  write(scratch.path / "outside", weights);
  write(folder / "a", weights);
  write(folder / "tokenizer.json", fuzz::byte_tokenizer().dump());
  const auto parts = fuzz::parts(data, size, 5);
  const char* names[] = {"model.safetensors.index.json", "tokenizer_config.json",
                         "generation_config.json", "chat_template.json"};
  for (size_t i = 0; i < 4; ++i) {
    std::error_code error;
    if (parts[i].empty())
      fs::remove(folder / names[i], error);
    else
      write(folder / names[i], parts[i]);
  }
  if (parts[0].empty()) write(folder / names[0], R"({"weight_map": {"x": "a"}})");
  const Json config = fuzz::tiny_model().checkpoint()->config();
  write(folder / "config.json", parts[4].empty() ? config.dump() : std::string(parts[4]));
  try {
    const Model model = Model::open(folder);
    for (const std::string& name : model.checkpoint()->names())
      if (const StoredTensor& tensor = model.checkpoint()->get(name);
          tensor.file->path().parent_path() != folder)
        std::abort();
    for (const int32_t id : model.stop_ids())
      if (id < 0 || id >= model.config().vocab_size) std::abort();
    model.tokenizer().encode("a <|turn|>");
    model.tokenizer_config().chat_template(true);
    model.text_files();
    model.checkpoint()->digest();
  } catch (const Error&) {
  }
  return 0;
}

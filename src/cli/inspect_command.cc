// whit inspect MODEL: config, sizes, the table of linears, and an engine's record of how it was
// made.
#include "base/progress.h"
#include "cli/command.h"
#include "cli/common.h"

namespace whit::cli {
namespace {

struct InspectOptions {
  std::string model;
  bool kernels = false, json = false;
  MachineOptions machine;
};

// How the weight of a linear or embedding is stored: a scheme's name, or a checkpoint's dtype.
std::string stored_as(const Model& model, const Node& node) {
  if (model.engine() != nullptr) {
    const auto found = model.engine()->manifest().linears.find(module_of(node));
    return found == model.engine()->manifest().linears.end() ? "missing"
                                                             : found->second.full_name();
  }
  const StoredTensor* tensor = model.checkpoint()->find(node.weight_name);
  return tensor == nullptr ? "missing" : std::string(name(tensor->type));
}

Json linears_of(const Model& model) {
  std::map<NodeId, std::string> reasons;
  for (const LinearDecision& decision : analyse_linears(model.graph()))
    reasons[decision.node] = decision.reason;
  Json linears = Json::array();
  for (NodeId id = 0; id < model.graph().all().end; ++id) {
    const Node& node = model.graph().node(id);
    if (node.op != Op::kLinear && node.op != Op::kEmbedding) continue;
    const auto reason = reasons.find(id);
    linears.push_back(
        {{"name", node.name},
         {"shape", {node.n, node.k}},
         {"stored_as", stored_as(model, node)},
         {"quantizable", reason != reasons.end() && reason->second.empty()},
         {"left_alone_because",
          reason == reasons.end() ? "it is the embedding table; --head decides" : reason->second}});
  }
  return linears;
}

Json kernels_of(const InspectOptions& user, const Model& model) {
  Machine machine(user.machine);
  const Executor executor(model.config(), model.graph(), model.weights(),
                          {.max_tokens = 16,
                           .max_context = 16,
                           .max_logit_rows = 1,
                           .isa = machine.isa,
                           .backend = machine.backend},
                          machine.pool);
  Json steps = Json::array();
  for (const Program::StepInfo& step : executor.describe())
    steps.push_back({{"name", step.name},
                     {"kernel", step.kernel},
                     {"n", step.n},
                     {"k", step.k},
                     {"bytes", step.bytes}});
  return steps;
}

Json description_of(const InspectOptions& user, const Model& model) {
  const ModelConfig& config = model.config();
  Json json = {{"model", model.description()},
               {"kind", model.engine()                  ? "engine"
                        : model.checkpoint()->is_gguf() ? "gguf"
                                                        : "hugging face directory"},
               {"architecture", config.architecture},
               {"parameters", model.parameters()},
               {"stored_bytes", model.stored_bytes()},
               {"bits_per_weight", model.bits_per_weight()},
               {"config",
                {{"hidden_size", config.hidden_size},
                 {"intermediate_size", config.intermediate_size},
                 {"num_hidden_layers", config.num_hidden_layers},
                 {"num_attention_heads", config.num_attention_heads},
                 {"num_key_value_heads", config.num_key_value_heads},
                 {"head_dim", config.head_dim},
                 {"vocab_size", config.vocab_size},
                 {"max_position_embeddings", config.max_position_embeddings},
                 {"rope_theta", config.rope.theta},
                 {"sliding_window", config.sliding_window},
                 {"tie_word_embeddings", config.tie_word_embeddings}}},
               {"stop_ids", model.stop_ids()},
               {"chat_template", model.tokenizer_config().chat_template(false) != nullptr}};
  if (model.checkpoint() != nullptr) json["digest"] = model.checkpoint()->digest();
  if (model.engine() != nullptr) {
    const EngineManifest& manifest = model.engine()->manifest();
    json["engine"] = {{"mode", manifest.mode},
                      {"scheme", to_json(manifest.scheme)},
                      {"scheme_name", manifest.scheme_name()},
                      {"head", manifest.head},
                      {"source", manifest.source},
                      {"quantized_on", manifest.quantized_on},
                      {"calibration", manifest.calibration},
                      {"quality", manifest.quality},
                      {"report", manifest.report}};
  }
  json["linears"] = linears_of(model);
  if (user.kernels) json["kernels"] = kernels_of(user, model);
  return json;
}

std::string error_cell(const Json& report, const char* key) {
  const auto found = report.find(key);
  return found != report.end() && found->is_number() ? fmt::format("{:.3g}", found->get<double>())
                                                     : "-";
}

void print_report(const Json& report) {
  std::vector<std::vector<std::string>> rows;
  for (const Json& group : report) {
    if (!group.is_object()) continue;
    rows.push_back({group.value("name", Json("")).dump(), error_cell(group, "exponent"),
                    error_cell(group, "rtn_error"), error_cell(group, "error")});
    if (rows.back()[0].size() >= 2)
      rows.back()[0] = rows.back()[0].substr(1, rows.back()[0].size() - 2);
  }
  if (rows.empty()) return;
  fmt::print("\nRelative output error on held-out tokens, rounded to nearest and as chosen:\n\n");
  print_table({"group", "exponent", "rounded", "chosen"}, rows);
}

void print_text(const Json& json, const Model& model) {
  const ModelConfig& config = model.config();
  fmt::print(
      "{}\n{}: {} layers, hidden {}, ffn {}, {} heads ({} key/value) of {}, vocabulary {}, context "
      "{}\n",
      model.description(), config.architecture, config.num_hidden_layers, config.hidden_size,
      config.intermediate_size, config.num_attention_heads, config.num_key_value_heads,
      config.head_dim, config.vocab_size, config.max_position_embeddings);
  fmt::print("{:.2f} M parameters, {}, {:.2f} bits per weight; head {}; chat template: {}\n",
             static_cast<double>(model.parameters()) / 1e6,
             format_bytes(static_cast<double>(model.stored_bytes())), model.bits_per_weight(),
             config.tie_word_embeddings ? "tied to the embedding table" : "of its own",
             json["chat_template"].get<bool>() ? "yes" : "no");
  if (model.engine() != nullptr) {
    const EngineManifest& manifest = model.engine()->manifest();
    fmt::print("made from {}\nquantized on: {}\ncalibration: {}\nquality: {}\n", manifest.source,
               manifest.quantized_on.empty() ? "not recorded" : manifest.quantized_on.dump(),
               manifest.calibration.dump(),
               manifest.quality.empty() ? "not measured" : manifest.quality.dump());
  } else {
    fmt::print("digest {}\n", model.checkpoint()->digest());
  }
  std::vector<std::vector<std::string>> rows;
  for (const Json& linear : json["linears"])
    rows.push_back({linear["name"].get<std::string>(),
                    fmt::format("{} x {}", linear["shape"][0].get<int64_t>(),
                                linear["shape"][1].get<int64_t>()),
                    linear["stored_as"].get<std::string>(),
                    linear["quantizable"].get<bool>()
                        ? "quantizable"
                        : linear["left_alone_because"].get<std::string>()});
  fmt::print("\n");
  print_table({"linear", "N x K", "stored as", "quantization"}, rows, 4);
  if (model.engine() != nullptr) print_report(model.engine()->manifest().report);
  if (json.contains("kernels")) {
    rows.clear();
    for (const Json& step : json["kernels"])
      rows.push_back({step["name"].get<std::string>(), step["kernel"].get<std::string>(),
                      fmt::format("{} x {}", step["n"].get<int64_t>(), step["k"].get<int64_t>()),
                      format_bytes(step["bytes"].get<double>())});
    fmt::print("\n");
    print_table({"step", "kernel", "N x K", "packed"}, rows, 2);
  }
}

int inspect(const InspectOptions& user) {
  const Model model = Model::open(user.model);
  const Json json = description_of(user, model);
  if (user.json)
    print_json(json);
  else
    print_text(json, model);
  return 0;
}

}  // namespace

Action add_inspect(CLI::App& app) {
  auto user = std::make_shared<InspectOptions>();
  add_model(app, user->model);
  app.add_flag("--kernels", user->kernels,
               "Load the model and list what runs: step, kernel, shape, packed bytes");
  user->machine.add_to(app);
  user->machine.add_backend(app);
  add_json(app, user->json);
  app.footer(R"(
For every linear: its shape, how it is stored, and whether a scheme quantizes it or why not. For an engine also the
calibration, and what was chosen for each group of linears with its error.

Example:
  whit inspect smol-w4a8 --kernels)");
  return [user] { return inspect(*user); };
}

}  // namespace whit::cli

// whit doctor [MODEL]: what this machine offers, and whether a model works on it.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "api/tuning.h"
#include "base/progress.h"
#include "cli/command.h"
#include "cli/common.h"
#include "cli/tuned.h"
#include "engine/machine_limits.h"
#include "runtime/chat.h"

namespace whit::cli {
namespace {

struct DoctorOptions {
  std::string model;
  bool json = false;
  MachineOptions machine;
};

struct Check {
  std::string name;
  bool passed;
  std::string detail;  // what was found; the reason and remedy where it failed
};

// The value of the first line of a /proc file that begins with `key`, or "".
std::string proc_field(const char* file, std::string_view key) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with(key)) continue;
    const size_t value = line.find_first_not_of(" \t", line.find(':') + 1);
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "";
}

// Of the flags that kernels know, those this CPU has.
std::string cpu_features() {
  const std::string flags = " " + proc_field("/proc/cpuinfo", "flags") + " ";
  std::string found;
  for (const char* flag : {"avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512vl",
                           "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8"})
    if (flags.find(fmt::format(" {} ", flag)) != std::string::npos)
      found += fmt::format("{}{}", found.empty() ? "" : " ", flag);
  return found.empty() ? "none of those that kernels use" : found;
}

double memory_available() {
  const std::string kilobytes = proc_field("/proc/meminfo", "MemAvailable");
  double bytes = 1024 * std::strtod(kilobytes.c_str(), nullptr);
  std::ifstream limit("/sys/fs/cgroup/memory.max"), used("/sys/fs/cgroup/memory.current");
  double limit_bytes = 0, used_bytes = 0;
  if (limit >> limit_bytes && used >> used_bytes) bytes = std::min(bytes, limit_bytes - used_bytes);
  return bytes;
}

class Doctor {
 public:
  void check(const std::string& name, const std::function<std::string()>& body) {
    try {
      checks_.push_back({name, true, body()});
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kInterrupted) throw;
      checks_.push_back({name, false, error.what()});
    } catch (const std::exception& error) {
      checks_.push_back({name, false, error.what()});
    }
  }
  bool passed() const {
    return std::all_of(checks_.begin(), checks_.end(),
                       [](const Check& check) { return check.passed; });
  }
  const std::vector<Check>& checks() const { return checks_; }

 private:
  std::vector<Check> checks_;
};

void check_machine(Doctor& doctor, Machine& machine, Json& facts) {
  facts = {{"version", WHIT_VERSION},
           {"cpu", proc_field("/proc/cpuinfo", "model name")},
           {"features", cpu_features()},
           {"isa", cpu::name(machine.isa)},
           {"cpus_usable", available_cpus()},
           {"threads", machine.pool.size()},
           {"memory_available_bytes", memory_available()}};
  doctor.check("instruction set", [&]() -> std::string {
    if (machine.isa == cpu::Isa::kPortable && cpu::detected_isa() == cpu::Isa::kPortable)
      throw Error(ErrorKind::kUnsupported,
                  "this CPU has no AVX2: everything works, but slowly; use an x86-64 CPU of 2013 "
                  "or later (in a virtual machine: pass the host's CPU through)");
    return fmt::format("{} kernels", cpu::name(machine.isa));
  });
  doctor.check("threads", [&]() -> std::string {
    if (machine.pool.size() > available_cpus())
      throw Error(ErrorKind::kResource,
                  "{} threads share {} CPUs and will wait for each other; use --threads {}",
                  machine.pool.size(), available_cpus(), available_cpus());
    return fmt::format("{} on {} usable CPUs", machine.pool.size(), available_cpus());
  });
  doctor.check("memory bandwidth", [&] {
    const double bandwidth = measure_read_bandwidth(machine.pool);
    facts["bandwidth_bytes_per_s"] = bandwidth;
    return fmt::format("{}/s", format_bytes(bandwidth));
  });
}

std::string check_tokenizer(const Model& model) {
  const Tokenizer& tokenizer = model.tokenizer();
  const std::string text = "The quick brown fox, 1234 — naïve café; 東京 🙂\n\tint x = 0;";
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const std::string back = tokenizer.decode(ids, /*skip_special_tokens=*/true);
  if (back != text)
    throw Error(ErrorKind::kInvalidData,
                "a text does not survive encoding and decoding: \"{}\" became \"{}\"; if the "
                "model's tokenizer is not meant to "
                "lose characters, tokenizer.json is damaged: fetch it again",
                text, back);
  return fmt::format("{} tokens; a text survives the round trip", tokenizer.vocab_size());
}

std::string check_logits(const Model& model, Machine& machine) {
  Executor executor(model.config(), model.graph(), model.weights(),
                    {.max_tokens = 16,
                     .max_context = std::min<int64_t>(16, model.config().max_position_embeddings),
                     .max_logit_rows = 16,
                     .isa = machine.isa},
                    machine.pool);
  KvCache cache = executor.make_cache(1, executor.options().max_context, model.default_kv_dtype());
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 8; ++i)
    ids.push_back(static_cast<int32_t>(i * 7 % model.config().vocab_size));
  const int64_t starts[] = {0}, counts[] = {static_cast<int64_t>(ids.size())};
  const ContiguousBatch batch(starts, counts, cache.page_tokens());
  executor.step(ids, batch.view(), cache);
  std::vector<int32_t> rows;
  for (size_t i = 0; i < ids.size(); ++i) rows.push_back(static_cast<int32_t>(i));
  const float* logits = executor.logits(rows);
  for (int64_t i = 0; i < static_cast<int64_t>(rows.size()) * model.config().vocab_size; ++i)
    if (!std::isfinite(logits[i]))
      throw Error(ErrorKind::kInvalidData,
                  "logit {} of a test prompt is not finite: the weights are damaged, or a kernel "
                  "is wrong on this CPU; "
                  "fetch the model again, and try --isa portable",
                  i);
  return "logits of a test prompt are finite";
}

void check_model(Doctor& doctor, Machine& machine, const std::string& path, Json& facts) {
  std::optional<Model> model;
  doctor.check("model opens", [&] {
    model.emplace(Model::open(path));
    facts["model"] = model->description();
    return fmt::format("{}, {}", model->description(),
                       format_bytes(static_cast<double>(model->stored_bytes())));
  });
  if (!model) return;
  doctor.check("tokenizer", [&] { return check_tokenizer(*model); });
  doctor.check("weights compute", [&] { return check_logits(*model, machine); });
  if (model->engine() != nullptr)
    doctor.check("tuning", [&]() -> std::string {
      // tuned() has warned of a file that cannot be used.
      const auto stored = stored_tuning(path, [](const std::string&) {});
      if (!stored)
        return fmt::format("none: 'whit bench {} --tune' measures what is fastest", path);
      facts["tuning"] = to_json(*stored);
      facts["tuning"]["file"] = tuning_path(path).string();
      return fmt::format("{} kernels on {} threads, by {}", cpu::name(stored->choice().isa),
                         stored->choice().threads, tuning_path(path).string());
    });
  doctor.check("stop tokens", [&]() -> std::string {
    if (model->stop_ids().empty())
      throw Error(ErrorKind::kInvalidData,
                  "neither generation_config.json nor config.json names an eos_token_id: answers "
                  "end only at "
                  "--max-tokens; add \"eos_token_id\" to generation_config.json");
    return fmt::format("{}", model->stop_ids().size());
  });
  doctor.check("chat template", [&]() -> std::string {
    if (!has_chat_template(*model)) return "none: not a chat model (whit run without --chat)";
    const ConversationMessage message{"user", "Hello"};
    return fmt::format("renders a message to {} tokens",
                       chat_prompt_ids(*model, {&message, 1}).size());
  });
}

int examine(const DoctorOptions& user) {
  Machine machine(tuned(user.machine, user.model));
  Doctor doctor;
  Json facts;
  check_machine(doctor, machine, facts);
  if (!user.model.empty()) check_model(doctor, machine, user.model, facts);
  if (user.json) {
    Json list = Json::array();
    for (const Check& check : doctor.checks())
      list.push_back({{"name", check.name}, {"passed", check.passed}, {"detail", check.detail}});
    facts["checks"] = list;
    facts["passed"] = doctor.passed();
    print_json(facts);
  } else {
    fmt::print("whit {}\n{} ({})\n{} usable CPUs, {} memory available\n\n", WHIT_VERSION,
               facts["cpu"].get<std::string>(), facts["features"].get<std::string>(),
               available_cpus(), format_bytes(memory_available()));
    for (const Check& check : doctor.checks())
      fmt::print("{:<7}{:<18}{}\n", check.passed ? "ok" : "FAILED", check.name, check.detail);
  }
  return doctor.passed() ? 0 : exit_code(ErrorKind::kInvalidData);
}

}  // namespace

Action add_doctor(CLI::App& app) {
  auto user = std::make_shared<DoctorOptions>();
  app.add_option("MODEL", user->model,
                 "Also check this Hugging Face directory, .gguf file or engine directory");
  user->machine.add_to(app);
  add_json(app, user->json);
  app.footer(R"(
Each check says ok or FAILED with a remedy; the exit status is 0 only if all are ok.

Example:
  whit doctor smol-w4a8)");
  return [user] { return examine(*user); };
}

}  // namespace whit::cli

// whit bench MODEL: speed in llama-bench's terms.
#include <fstream>

#include "api/tuning.h"
#include "base/progress.h"
#include "cli/bench_serve.h"
#include "cli/command.h"
#include "cli/common.h"
#include "cli/tuned.h"
#include "engine/cuda_kernels.h"
#include "evaluate/bench.h"

namespace whit::cli {
namespace {

struct BenchOptionsOfUser {
  std::string model;
  BenchOptions bench;
  std::string kv_cache_dtype = "auto";
  bool json = false, tune = false, kernels = false;
  std::vector<int64_t> rows = {1, 16, 64, 128, 256, 1024};
  MachineOptions machine;
};

// The sweep's buffer is none of the model's memory: the peak is counted anew (proc(5), clear_refs;
// where that is not allowed the buffer stays in the figure).
MachineLimits limits_apart(Machine& machine) {
  MachineLimits limits = measure_limits(machine.isa, machine.pool);
  std::ofstream("/proc/self/clear_refs") << "5";
  return limits;
}

std::string percent(double value) { return value > 0 ? fmt::format("{:.0f}", value) : "-"; }

int run_tune(const BenchOptionsOfUser& user) {
  if (user.machine.isa != "auto" || user.machine.threads != 0 || user.machine.backend != "cpu")
    throw Error(ErrorKind::kInvalidArgument,
                "--tune chooses the instruction set and the threads of the CPU: give it without "
                "--isa, --threads and --backend");
  const Tuning tuning = tune(user.model);
  const std::string path = store_tuning(user.model, tuning).string();
  if (user.json) {
    Json json = to_json(tuning);
    json["file"] = path;
    print_json(json);
    return 0;
  }
  std::vector<std::vector<std::string>> table;
  for (const TuningTrial& trial : tuning.trials)
    table.push_back({std::string(cpu::name(trial.isa)), fmt::format("{}", trial.threads),
                     fmt::format("{:.1f}", trial.prefill_tokens_per_s),
                     fmt::format("{:.1f}", trial.decode_tokens_per_s),
                     fmt::format("{:.3f}", trial.request_s()),
                     &trial == &tuning.choice() ? "chosen" : ""});
  print_table({"isa", "threads", "pp256 t/s", "tg64 t/s", "256 + 256 s", ""}, table);
  fmt::print("\nstored in {}: runs without --isa and --threads use it\n", path);
  return 0;
}

int run_kernels(const BenchOptionsOfUser& user) {
  if (user.machine.backend != "cuda")
    throw Error(ErrorKind::kInvalidArgument,
                "--kernels measures the kernels of the CUDA backend: give --backend cuda "
                "(the CPU's are measured by bench_kernels of a build)");
  const CudaKernelTimings timings = time_cuda_kernels(Model::open(user.model), user.rows);
  if (user.json) {
    Json list = Json::array(), others = Json::array();
    for (const CudaKernelTiming& row : timings.others)
      others.push_back({{"kernel", row.kernel},
                        {"format", row.format},
                        {"m", row.m},
                        {"context", row.context},
                        {"tokens", row.tokens},
                        {"us", row.us},
                        {"bytes_per_s", row.bytes_per_s},
                        {"operations_per_s", row.operations_per_s},
                        {"percent_of_bandwidth", row.percent_of_bandwidth},
                        {"percent_of_peak", row.percent_of_peak}});
    for (const CudaLinearTiming& row : timings.linears)
      list.push_back({{"linears", row.linears},
                      {"format", row.format},
                      {"group_size", row.group_size},
                      {"zero_points", row.zero_points},
                      {"n", row.n},
                      {"k", row.k},
                      {"m", row.m},
                      {"us", row.us},
                      {"weight_bytes_per_s", row.weight_bytes_per_s},
                      {"bare_read_us", row.bare_read_us},
                      {"operations_per_s", row.operations_per_s},
                      {"percent_of_bandwidth", row.percent_of_bandwidth},
                      {"percent_of_bare_read", row.percent_of_bare_read},
                      {"percent_of_peak", row.percent_of_peak}});
    print_json({{"device", timings.device},
                {"sms", timings.sms},
                {"read_bytes_per_s", timings.read_bytes_per_s},
                {"int8_operations_per_s", timings.int8_operations_per_s},
                {"bf16_operations_per_s", timings.bf16_operations_per_s},
                {"rows", list},
                {"others", others}});
    return 0;
  }
  std::vector<std::vector<std::string>> table;
  for (const CudaLinearTiming& row : timings.linears)
    table.push_back(
        {row.linears, row.format, fmt::format("{} x {}", row.n, row.k), fmt::format("{}", row.m),
         fmt::format("{:.1f}", row.us), fmt::format("{:.2f}", row.weight_bytes_per_s / 1e12),
         percent(row.percent_of_bandwidth), fmt::format("{:.1f}", row.bare_read_us),
         percent(row.percent_of_bare_read), fmt::format("{:.0f}", row.operations_per_s / 1e12),
         percent(row.percent_of_peak)});
  print_table({"linears", "format", "N x K", "M", "us", "TB/s", "%BW", "bare us", "%bare", "TOP/s",
               "%peak"},
              table);
  table.clear();
  for (const CudaKernelTiming& row : timings.others)
    table.push_back(
        {row.kernel, row.format, fmt::format("{}", row.m),
         row.context > 0 ? fmt::format("{}", row.context) : "", fmt::format("{:.1f}", row.us),
         fmt::format("{:.2f}", row.bytes_per_s / 1e12), percent(row.percent_of_bandwidth),
         fmt::format("{:.0f}", row.operations_per_s / 1e12), percent(row.percent_of_peak)});
  fmt::print("\n");
  print_table({"kernel", "format", "M", "context", "us", "TB/s", "%BW", "TOP/s", "%peak"}, table);
  fmt::print(
      "\n{}, {} SMs; weights from device memory; %BW: of {:.2f} TB/s read; bare: a kernel that "
      "only "
      "reads as many bytes; %peak: of {:.0f} TOP/s (8 bits) or {:.0f} TFLOP/s (bf16), the best "
      "dense "
      "product of 8192 cubed; all in this run\n",
      timings.device, timings.sms, timings.read_bytes_per_s / 1e12,
      timings.int8_operations_per_s / 1e12, timings.bf16_operations_per_s / 1e12);
  return 0;
}

int run_bench(const BenchOptionsOfUser& user) {
  Machine machine(tuned(user.machine, user.model));
  // The host's limits bound nothing that runs on a GPU.
  const bool on_cpu = machine.backend == Backend::kCpu;
  const MachineLimits limits = on_cpu ? limits_apart(machine) : MachineLimits();
  const int64_t batch = *std::max_element(user.bench.batches.begin(), user.bench.batches.end());
  LoadedModel loaded(user.model,
                     {.max_tokens = std::max<int64_t>(512, batch),
                      .max_logit_rows = std::max<int64_t>(1, batch),
                      .isa = machine.isa,
                      .backend = machine.backend},
                     machine.pool);
  BenchOptions options = user.bench;
  options.kv_dtype = loaded.kv_format(user.kv_cache_dtype);
  std::vector<int64_t> contexts = options.prompts;
  for (const int64_t length : options.generations) contexts.push_back(options.depth + length);
  for (const int64_t length : contexts)
    if (length > loaded.executor->options().max_context)
      throw Error(ErrorKind::kInvalidArgument, "{} tokens are more than the model's context of {}",
                  length, loaded.executor->options().max_context);
  const std::vector<BenchRow> rows = bench(*loaded.executor, options, limits);
  const std::string backend = machine.description();
  if (user.json) {
    Json list = Json::array();
    for (const BenchRow& row : rows) list.push_back(to_json(row));
    print_json({{"model", loaded.model.description()},
                {"size_bytes", loaded.model.stored_bytes()},
                {"parameters", loaded.model.parameters()},
                {"backend", backend},
                {"threads", machine.pool.size()},
                {"bandwidth_bytes_per_s", limits.read_bytes_per_s},
                {"limits", to_json(limits)},
                {"load_s", loaded.load_s},
                {"kv_cache_dtype", name(options.kv_dtype.type)},
                {"peak_memory_bytes", peak_memory_bytes()},
                {"rows", list}});
    return 0;
  }
  std::vector<std::vector<std::string>> table;
  for (const BenchRow& row : rows)
    table.push_back({loaded.model.description(),
                     format_bytes(static_cast<double>(loaded.model.stored_bytes())),
                     fmt::format("{:.2f} M", static_cast<double>(loaded.model.parameters()) / 1e6),
                     backend, fmt::format("{}", machine.pool.size()),
                     row.batch == 1 ? row.test : fmt::format("{} b{}", row.test, row.batch),
                     fmt::format("{:.2f} ± {:.2f}", row.tokens_per_s, row.spread),
                     percent(row.percent_of_roofline), percent(row.percent_of_int8_peak)});
  print_table({"model", "size", "params", "backend", "threads", "test", "t/s", "%BW", "%int8"},
              table);
  fmt::print("\nmedian of {} runs ± half their range", options.repetitions);
  if (on_cpu)
    fmt::print("; %BW: bytes that a step must read, of the {}/s that these threads read cold",
               format_bytes(limits.read_bytes_per_s));
  fmt::print("\n");
  if (limits.int8_operations_per_s > 0)
    fmt::print(
        "%int8: operations of the linears, of the {:.0f} GOP/s of {}'s int8 multiplications\n",
        limits.int8_operations_per_s / 1e9, cpu::name(machine.isa));
  fmt::print("{}", limits.placement);
  if (limits.barrier_s > 0) {
    fmt::print("; a barrier takes {:.0f} ns", 1e9 * limits.barrier_s);
    for (const BenchRow& row : rows) {
      if (row.percent_of_roofline <= 0) continue;
      const double step_s = static_cast<double>(row.batch) / row.tokens_per_s;
      fmt::print("; {}: {} a step, {:.1f} % of it",
                 row.batch == 1 ? row.test : fmt::format("{} b{}", row.test, row.batch),
                 row.barriers_per_step,
                 100 * limits.barrier_s * static_cast<double>(row.barriers_per_step) / step_s);
    }
  }
  fmt::print("\n");
  return 0;
}

}  // namespace

Action add_bench(CLI::App& app) {
  auto user = std::make_shared<BenchOptionsOfUser>();
  CLI::App* serve = app.add_subcommand("serve", "Load on a server that is running");
  const Action bench_serve = add_bench_serve(*serve);
  app.add_option("MODEL", user->model, "Hugging Face directory, .gguf file or engine directory");
  app.add_option("-p,--prompt-tokens", user->bench.prompts,
                 "Prompt lengths, comma-separated; 0: none")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("-n,--generated-tokens", user->bench.generations,
                 "Decoded lengths, comma-separated; 0: none")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("-b,--batch", user->bench.batches, "Sequences decoding together, comma-separated")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(int64_t{1}, int64_t{1024}))
      ->capture_default_str();
  app.add_option("-d,--depth", user->bench.depth,
                 "Tokens in each sequence's context before decoding begins")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("-r,--repetitions", user->bench.repetitions,
                 "Measured runs of each test, after one that warms up")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--tune", user->tune,
               "Measure which instruction set and how many threads run this engine fastest here, "
               "and store the choice");
  app.add_flag("--kernels", user->kernels,
               "With --backend cuda: time the model's kernels one by one, beside the device's read "
               "bandwidth and dense peaks");
  app.add_option(
         "--rows", user->rows,
         "Rows (of attention, sequences or a prompt's tokens) of --kernels, comma-separated")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(int64_t{1}, int64_t{8192}))
      ->capture_default_str();
  add_kv_cache_dtype(app, user->kv_cache_dtype);
  user->machine.add_to(app);
  user->machine.add_backend(app);
  add_json(app, user->json);
  app.footer(R"(
pp512: tokens per second of a prompt of 512 tokens. tg128: of 128 decoding steps, all sequences together.

Example:
  whit bench smol-w4a8 -p 512 -n 128 -b 1,4,8 -t 2
  whit bench smol-w4a8 --tune
  whit bench smol-w4a8 --backend cuda --kernels --rows 1,16,1024)");
  return [user, serve, bench_serve] {
    if (serve->parsed()) return bench_serve();
    if (user->model.empty())
      throw Error(ErrorKind::kInvalidArgument, "MODEL is required; 'whit bench --help' explains");
    if (user->tune) return run_tune(*user);
    if (user->kernels) return run_kernels(*user);
    std::erase(user->bench.prompts, 0);
    std::erase(user->bench.generations, 0);
    return run_bench(*user);
  };
}

}  // namespace whit::cli

#include "cli/compare_study.h"

#include <chrono>

#include "api/calibration_study.h"
#include "api/report_data.h"
#include "base/progress.h"
#include "cli/report_options.h"

namespace whit::cli {
namespace {

std::vector<StudySet> sets_of(const StudyRequest& request, const Model& model, Machine& machine) {
  std::vector<StudySet> sets;
  std::string rest = request.calibration.source;
  while (true) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    CalibrationRequest one = request.calibration;
    one.source = rest.substr(0, end);
    StudySet set{.data = calibration_data(model, one, machine.isa, machine.pool)};
    set.name = set.data.source;
    for (const StudySet& other : sets)
      if (other.name == set.name) set.name = fmt::format("{} ({})", set.name, sets.size() + 1);
    sets.push_back(std::move(set));
    if (end == rest.size()) return sets;
    rest.erase(0, end + 1);
  }
}

void print_cells(const Json& study, const char* key, const char* title) {
  std::vector<std::string> header = {title, "calibrated on"};
  for (const Json& text : study["texts"]) header.push_back(text.get<std::string>());
  std::vector<std::vector<std::string>> rows;
  for (const Json& row : study["rows"]) {
    rows.push_back({row["recipe"].get<std::string>(), row["set"].get<std::string>()});
    for (const Json& cell : row["cells"])
      rows.back().push_back(fmt::format("{:.4f}", cell[key].get<double>()));
  }
  print_table(header, rows, 2);
  fmt::print("\n");
}

void print_text(const Json& study) {
  print_cells(study, "kld", "KL divergence");
  print_cells(study, "ppl_ratio", "PPL / original");
  std::vector<std::string> header = {"distance, seen"};
  for (const Json& text : study["texts"]) header.push_back(text.get<std::string>());
  std::vector<std::vector<std::string>> rows;
  for (const Json& set : study["sets"]) {
    rows.push_back({set["name"].get<std::string>()});
    for (const Json& fit : set["fit"])
      rows.back().push_back(fmt::format("{:.3f} ({:.3f}), {:.0f} %", fit["distance"].get<double>(),
                                        fit["floor"].get<double>(),
                                        100 * fit["coverage"].get<double>()));
  }
  print_table(header, rows);
  fmt::print("(in brackets: between two halves of the text)\n\n");
  for (const Json& change : study["changes"])
    fmt::print(
        "{}: {} or {} changes the exponent of {} of {} groups (by {:.2f} at most){}\n",
        change["recipe"].get<std::string>(), change["sets"][0].get<std::string>(),
        change["sets"][1].get<std::string>(), change["exponents_differ"].get<int64_t>(),
        change["groups"].get<int64_t>(), change["largest_exponent_change"].get<double>(),
        change.contains("median_threshold_ratio")
            ? fmt::format(" and static thresholds by a factor of {:.2f} (median), {:.2f} at most",
                          change["median_threshold_ratio"].get<double>(),
                          change["largest_threshold_ratio"].get<double>())
            : "");
  for (const Json& note : study["notes"]) fmt::print("note: {}\n", note.get<std::string>());
}

}  // namespace

int compare_calibration(const StudyRequest& request, Machine& machine) {
  const auto start = std::chrono::steady_clock::now();
  const Model model = Model::open(request.model);
  for (const Recipe& recipe : request.recipes) {
    check_recipe(recipe, model);
    if (!needs_calibration(recipe))
      throw Error(ErrorKind::kInvalidArgument,
                  "recipe {}:{} reads no calibration data: there is nothing to compare",
                  recipe.mode, recipe.scheme.name());
  }
  std::vector<StudyText> texts;
  for (const std::string& name : request.texts.empty() ? built_in_texts() : request.texts)
    texts.push_back(study_text(model, name));
  const std::vector<StudySet> sets = sets_of(request, model, machine);
  const Json study = calibration_study(
      model, sets, request.recipes, texts,
      {.isa = machine.isa, .ctx_size = request.ctx_size, .max_windows = request.max_windows},
      machine.pool);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!request.reports.empty()) {
    Json report = new_report("Calibration sets compared", model);
    report["study"] = study;
    add_figure(report, "time", format_seconds(seconds));
    add_figure(report, "peak memory", format_bytes(static_cast<double>(peak_memory_bytes())));
    add_figure(report, "threads", fmt::format("{}", machine.pool.size()));
    write_reports(request.reports, report);
  }
  if (request.json) {
    Json json = study;
    json["seconds"] = seconds;
    json["peak_memory_bytes"] = peak_memory_bytes();
    print_json(json);
  } else {
    print_text(study);
  }
  return 0;
}

}  // namespace whit::cli

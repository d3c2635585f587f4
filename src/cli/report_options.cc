#include "cli/report_options.h"

namespace whit::cli {

void add_report(CLI::App& app, std::vector<std::string>& files) {
  app.add_option(
         "--report", files,
         "Write a report: .html, a page with charts that needs no other file, or .json, the "
         "same content; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
}

void check_reports(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    check_report_name(file);
    const std::filesystem::path folder = std::filesystem::absolute(file).parent_path();
    std::error_code error;
    if (!std::filesystem::is_directory(folder, error))
      throw Error(ErrorKind::kNotFound, "--report {}: there is no directory {}", file,
                  folder.string());
  }
}

Json new_report(const std::string& title, const Model& model) {
  return {{"format", "whit-report"},
          {"version", 1},
          {"title", title},
          {"model", model.description()},
          {"tool_version", WHIT_VERSION},
          {"engines", Json::array()},
          {"figures", Json::array()}};
}

void add_figure(Json& report, const std::string& name, const std::string& text) {
  report["figures"].push_back({name, text});
}

void write_reports(const std::vector<std::string>& files, const Json& report) {
  for (const std::string& file : files) write_report(file, report);
}

}  // namespace whit::cli

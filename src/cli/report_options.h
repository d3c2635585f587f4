// --report FILE: the record of a quantization or comparison as a page or as JSON.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "cli/common.h"
#include "report/report.h"

namespace whit::cli {

void add_report(CLI::App& app, std::vector<std::string>& files);
// Before any work: names that say what is to be written, folders that exist.
void check_reports(const std::vector<std::string>& files);

// A report's document without its sections.
Json new_report(const std::string& title, const Model& model);
// A line of its "figures".
void add_figure(Json& report, const std::string& name, const std::string& text);
void write_reports(const std::vector<std::string>& files, const Json& report);

}  // namespace whit::cli

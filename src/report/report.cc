#include "report/report.h"

#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "base/progress.h"
#include "report/page.h"

namespace whit {
namespace {

constexpr const char* kStyle = R"(
:root{--bg:#fff;--fg:#1c2024;--soft:#5d6670;--line:#d5dade;--card:#f6f8f9;--c0:#0b6bcb;--c1:#b5540a;
--c2:#2b7d3b;--c3:#a9b1ba;--c4:#8a3ffc;--c5:#c2185b}
@media (prefers-color-scheme:dark){:root{--bg:#15181b;--fg:#e6e9ec;--soft:#9aa4ae;--line:#363c42;--card:#1d2125;
--c0:#6cb2ff;--c1:#ffab6b;--c2:#7fd18f;--c3:#66707a;--c4:#c4a1ff;--c5:#ff8ab5}}
@media print{:root{--bg:#fff;--fg:#000;--soft:#444;--line:#bbb;--card:#fff;--c0:#0b6bcb;--c1:#b5540a;--c2:#2b7d3b;
--c3:#999;--c4:#8a3ffc;--c5:#c2185b}section,figure,table{break-inside:avoid}details{display:block}}
*{box-sizing:border-box}html{color-scheme:light dark}
body{margin:0 auto;max-width:1180px;padding:16px;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2em 0}h2{font-size:1.2rem;margin:2em 0 .4em;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4em 0 .2em}p{margin:.4em 0}.soft{color:var(--soft);font-size:.9rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:12px}
figure{margin:0;padding:8px;background:var(--card);border:1px solid var(--line);border-radius:8px}
svg{display:block;width:100%;height:auto}figcaption{font-size:.8rem;color:var(--soft);padding:0 4px}
figcaption b{font-weight:400;margin-right:1em;white-space:nowrap}
figcaption i{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.35em}
.head{font-size:12px;font-weight:600;fill:var(--fg)}.tick{font-size:9.5px;fill:var(--soft)}
.label{font-size:9.5px;fill:var(--fg)}.grid{stroke:var(--line);stroke-width:.6}.axis{stroke:var(--soft);stroke-width:1}
.s0{fill:var(--c0)}.s1{fill:var(--c1)}.s2{fill:var(--c2)}.s3{fill:var(--c3)}.s4{fill:var(--c4)}.s5{fill:var(--c5)}
.l0,.l1,.l2,.l3,.l4,.l5{fill:none;stroke-width:1.4}.l0{stroke:var(--c0)}.l1{stroke:var(--c1)}.l2{stroke:var(--c2)}
.l3{stroke:var(--c3)}.l4{stroke:var(--c4)}.l5{stroke:var(--c5)}
.b0{background:var(--c0)}.b1{background:var(--c1)}.b2{background:var(--c2)}.b3{background:var(--c3)}
.b4{background:var(--c4)}.b5{background:var(--c5)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;min-width:50%}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:right;overflow-wrap:normal}
th:first-child,td:first-child{text-align:left}.choice{background:var(--card);border-left:4px solid var(--c2);
padding:8px 14px}.warning{border-left:4px solid var(--c1);background:var(--card);padding:4px 12px;margin:6px 0}
)";

using Rows = std::vector<std::vector<std::string>>;

std::string number(double value, const char* format) {
  return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : "–";
}
std::string number(const Json& object, const char* key, const char* format) {
  return number(number_of(object, key, std::nan("")), format);
}
std::string bytes(const Json& object, const char* key) {
  const double value = number_of(object, key, std::nan(""));
  return std::isfinite(value) && value > 0 ? format_bytes(value) : "–";
}

// JSON values as a reader wants them.
std::string plain(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

class Page {
 public:
  explicit Page(const Json& report) : report_(report) {}

  std::string run() {
    const std::string title = text_of(report_, "title", "Quantization report");
    out_ =
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
        "<link rel=\"icon\" href=\"data:,\"><title>" +
        escape_html(title) + "</title><style>" + kStyle + "</style></head><body>\n<h1>" +
        escape_html(title) + "</h1>\n";
    paragraph("soft", text_of(report_, "model"));
    recommendation();
    overview();
    charts("Quality and size", tradeoff_charts(member_of(report_, "engines")));
    study();
    for (const Json& engine : member_of(report_, "engines")) engine_sections(engine);
    facts("Calibration", member_of(report_, "calibration"));
    pairs("Figures of this run", member_of(report_, "figures"));
    paragraph("soft",
              "whit " + text_of(report_, "tool_version") +
                  (text_of(report_, "command").empty() ? "" : " · " + text_of(report_, "command")));
    return out_ + "</body></html>\n";
  }

 private:
  void paragraph(const char* style, const std::string& text) {
    if (!text.empty()) out_ += fmt::format("<p class=\"{}\">{}</p>\n", style, escape_html(text));
  }

  void heading(int level, const std::string& text) {
    out_ += fmt::format("<h{0}>{1}</h{0}>\n", level, escape_html(text));
  }

  void table(const std::vector<std::string>& header, const Rows& rows) {
    out_ += "<div class=\"wide\"><table><thead><tr>";
    for (const std::string& cell : header) out_ += "<th>" + escape_html(cell) + "</th>";
    out_ += "</tr></thead><tbody>";
    for (const auto& row : rows) {
      out_ += "<tr>";
      for (const std::string& cell : row) out_ += "<td>" + escape_html(cell) + "</td>";
      out_ += "</tr>";
    }
    out_ += "</tbody></table></div>\n";
  }

  void charts(const std::string& title, const std::vector<Chart>& all, int level = 2) {
    std::string figures;
    for (const Chart& chart : all) {
      const std::string svg = render(chart);
      if (svg.empty()) continue;
      figures += "<figure>" + svg + "<figcaption>";
      if (chart.series.size() > 1)
        for (const Series& series : chart.series)
          figures +=
              fmt::format("<b><i class=\"b{}\"></i>{}</b>", series.color, escape_html(series.name));
      figures += "</figcaption></figure>\n";
    }
    if (figures.empty()) return;
    if (!title.empty()) heading(level, title);
    out_ += "<div class=\"charts\">" + figures + "</div>\n";
  }

  void recommendation() {
    const Json& choice = member_of(report_, "recommendation");
    if (!choice.is_object()) return;
    out_ += "<div class=\"choice\"><p><strong>" + escape_html(text_of(choice, "choice")) +
            "</strong></p>";
    for (const Json& why : member_of(choice, "why")) paragraph("soft", plain(why));
    out_ += "</div>\n";
  }

  void overview() {
    Rows rows;
    for (const Json& engine : member_of(report_, "engines")) {
      const Json& quality = member_of(engine, "quality");
      rows.push_back({text_of(engine, "name"), bytes(engine, "bytes"),
                      number(engine, "bits_per_weight", "{:.2f}"), number(quality, "ppl", "{:.3f}"),
                      number(quality, "ppl_ratio", "{:.4f}"), number(quality, "kld", "{:.4f}"),
                      number(100 * number_of(quality, "top1_agreement", std::nan("")), "{:.1f} %"),
                      number(engine, "prefill", "{:.0f}"), number(engine, "decode", "{:.1f}"),
                      bytes(engine, "peak_memory_bytes")});
    }
    if (rows.empty()) return;
    heading(2, "Engines");
    table({"engine", "size", "bits/weight", "PPL", "÷ original", "KLD", "top-1", "prompt t/s",
           "decode t/s", "memory"},
          rows);
    for (const Json& engine : member_of(report_, "engines"))
      for (const Json& warning : member_of(engine, "warnings"))
        paragraph("warning", text_of(engine, "name") + ": " + plain(warning));
  }

  void study() {
    const Json& study = member_of(report_, "study");
    if (!study.is_object()) return;
    heading(2, "Calibration sets compared");
    Rows rows;
    std::vector<std::string> header = {"engine", "calibrated on"};
    for (const Json& text : member_of(study, "texts")) header.push_back(plain(text));
    for (const char* key : {"kld", "ppl_ratio"}) {
      rows.clear();
      for (const Json& row : member_of(study, "rows")) {
        rows.push_back({text_of(row, "recipe"), text_of(row, "set")});
        for (const Json& cell : member_of(row, "cells"))
          rows.back().push_back(number(cell, key, "{:.4f}"));
      }
      heading(3, std::string(key) == "kld" ? "KL divergence by evaluation text"
                                           : "PPL ÷ the original's by evaluation text");
      table(header, rows);
    }
    rows.clear();
    header.erase(header.begin());
    for (const Json& set : member_of(study, "sets")) {
      rows.push_back({text_of(set, "name")});
      for (const Json& fit : member_of(set, "fit"))
        rows.back().push_back(
            fmt::format("{} · {}", number(fit, "distance", "{:.3f}"),
                        number(100 * number_of(fit, "coverage", std::nan("")), "{:.0f} %")));
    }
    if (!rows.empty()) {
      heading(3, "Distance of channel magnitudes (log2) and share of tokens seen");
      table(header, rows);
    }
    for (const Json& note : member_of(study, "notes")) paragraph("warning", plain(note));
  }

  void engine_sections(const Json& engine) {
    const Json& groups = member_of(engine, "groups");
    if (!groups.is_array() || groups.empty()) return;
    heading(2, text_of(engine, "name"));
    charts("Activations: outliers before and after folding", outlier_charts(groups), 3);
    charts("Weights", weight_charts(groups), 3);
    charts("What was chosen", choice_charts(groups), 3);
    charts("What is lost", error_charts(groups), 3);
    sensitivity(engine);
    Rows rows;
    for (const Json& group : groups)
      if (const std::string note = text_of(group, "note"); !note.empty())
        rows.push_back({text_of(group, "name"), note});
    if (rows.empty()) return;
    heading(3, "Notes");
    table({"group", "note"}, rows);
  }

  void sensitivity(const Json& engine) {
    const Json& study = member_of(engine, "sensitivity");
    if (!study.is_object()) {
      paragraph("soft",
                "What each group contributes to the divergence is measured by the sensitivity "
                "study of --scheme mixed only. Shown above in its place is the share of its own "
                "output that each group loses on held-out tokens; how far that reaches the "
                "model's answers it does not say.");
      return;
    }
    charts("Sensitivity and mixed precision", sensitivity_charts(engine), 3);
    paragraph("soft",
              fmt::format("Each group alone in each scheme by compensated rounding, the rest of "
                          "the model as it is, on {} held-out tokens. Predictions add these up; "
                          "they leave out what searched factors and correcting one group's error "
                          "in the next give, so the engine should be better.",
                          number(member_of(study, "study"), "tokens", "{:.0f}")));
    std::vector<std::string> header = {"group", "chosen"};
    Rows rows;
    for (const Json& group : member_of(engine, "groups")) {
      const Json& schemes = member_of(group, "schemes");
      if (!schemes.is_array() || schemes.empty()) continue;
      rows.push_back({text_of(group, "name"), text_of(group, "scheme")});
      for (const Json& cost : schemes) {
        if (rows.size() == 1) header.push_back("KLD " + text_of(cost, "scheme"));
        rows.back().push_back(number(cost, "kld", "{:.2e}"));
      }
    }
    if (rows.empty()) return;
    out_ += "<details><summary>Divergence of every group in every scheme</summary>";
    table(header, rows);
    out_ += "</details>\n";
  }

  void facts(const std::string& title, const Json& object) {
    if (!object.is_object() || object.empty()) return;
    Rows rows;
    for (const auto& [key, value] : object.items()) rows.push_back({key, plain(value)});
    heading(2, title);
    table({"", ""}, rows);
  }

  void pairs(const std::string& title, const Json& list) {
    if (!list.is_array() || list.empty()) return;
    Rows rows;
    for (const Json& pair : list)
      if (pair.is_array() && pair.size() == 2) rows.push_back({plain(pair[0]), plain(pair[1])});
    heading(2, title);
    table({"", ""}, rows);
  }

  const Json& report_;
  std::string out_;
};

bool is_json(const std::filesystem::path& path) { return path.extension() == ".json"; }

}  // namespace

std::string report_html(const Json& report) { return Page(report).run(); }

void check_report_name(const std::string& path) {
  const std::string extension = std::filesystem::path(path).extension().string();
  if (extension != ".html" && extension != ".htm" && extension != ".json")
    throw Error(ErrorKind::kInvalidArgument,
                "--report {}: its name must end in .html or .json, which says what is written",
                path);
}

void write_report(const std::string& path, const Json& report) {
  check_report_name(path);
  write_file(path, is_json(path) ? report.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"
                                 : report_html(report));
}

}  // namespace whit

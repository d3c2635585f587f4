#include "report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "report/page.h"

namespace whit {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

int64_t count(const std::string& text, const std::string& part) {
  int64_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

Json group(int layer, const std::string& kind) {
  const std::string name = fmt::format("model.layers.{}.self_attn.{}", layer, kind);
  return {{"name", name},
          {"layer", layer},
          {"kind", kind},
          {"exponent", 0.5},
          {"clipped", 0.1},
          {"rtn_error", 0.02},
          {"error", 0.01},
          {"kld", 0.001},
          {"bits", 4.15},
          {"activations",
           {{"channels", 4}, {"before", {1.0, 2.0, 50.0, 1.5}}, {"after", {1.0, 2.0, 3.0, 1.5}}}},
          {"weights", {{{"name", name}, {"before", {-0.5, 0.5}}, {"after", {-0.7, 0.6}}}}}};
}

Json whole_report() {
  Json engine = {{"name", "awq w4a8"},
                 {"bytes", 1000000},
                 {"bits_per_weight", 4.9},
                 {"quality", {{"ppl", 20.1}, {"ppl_ratio", 1.05}, {"kld", 0.05}}},
                 {"groups", Json::array()}};
  for (int layer = 0; layer < 3; ++layer) engine["groups"].push_back(group(layer, "q_proj"));
  Json other = {{"name", "smoothquant w8a8"},
                {"bits_per_weight", 8.3},
                {"quality", {{"ppl", 20.1}, {"ppl_ratio", 1.01}, {"kld", 0.005}}}};
  return {{"title", "A report"},
          {"model", "tiny"},
          {"engines", {engine, other}},
          {"calibration", {{"source", "text.txt"}, {"digest", "0123"}}},
          {"recommendation", {{"choice", "Use it."}, {"why", {"Because."}}}},
          {"study",
           {{"texts", {"prose"}},
            {"sets", {{{"name", "a.txt"}, {"fit", {{{"distance", 0.1}, {"coverage", 0.9}}}}}}},
            {"rows", {{{"recipe", "awq w4a8"}, {"set", "a.txt"}, {"cells", {{{"kld", 0.1234}}}}}}},
            {"notes", {"a.txt does not represent code"}}}},
          {"figures", Json::array({Json::array({"time", "0:12"})})}};
}

TEST(ReportTest, draws_every_chart_of_what_it_is_given) {
  const std::string html = report_html(whole_report());
  for (const char* chart : {"outliers-q_proj", "channels-q_proj", "weights-q_proj", "exponents",
                            "clipping", "bits", "errors-q_proj", "divergence", "pareto"})
    EXPECT_EQ(count(html, fmt::format("data-chart=\"{}\"", chart)), 1) << chart;
  EXPECT_EQ(count(html, "<svg"), 9);
  EXPECT_EQ(count(html, "</svg>"), 9);
  for (const char* words :
       {"Use it.", "Because.", "0123", "0:12", "0.1234", "does not represent code"})
    EXPECT_THAT(html, HasSubstr(words));
  EXPECT_THAT(html, Not(HasSubstr("nan")));
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_EQ(count(html, "http"), count(html, "http://www.w3.org/2000/svg"))
      << "it needs nothing from elsewhere";
}

TEST(ReportTest, a_sensitivity_study_is_shown_by_group_scheme_and_front) {
  Json report = whole_report();
  EXPECT_THAT(report_html(report), HasSubstr("sensitivity study of --scheme mixed only"));
  Json& engine = report["engines"][0];
  engine["sensitivity"] = {
      {"study", {{"tokens", 512}}},
      {"chosen", {{"bits_per_weight", 4.6}, {"kld", 0.07}}},
      {"front",
       {{{"bits_per_weight", 4.2}, {"kld", 0.2}}, {{"bits_per_weight", 8.0}, {"kld", 0.01}}}}};
  for (Json& group : engine["groups"]) {
    group["scheme"] = "w4a16 g64";
    group["schemes"] = {{{"scheme", "w4a16 g64"}, {"bits", 4.4}, {"kld", 0.0123}},
                        {{"scheme", "w8a16"}, {"bits", 8.1}, {"kld", 0.000456}}};
  }
  const std::string html = report_html(report);
  for (const char* chart : {"sensitivity-q_proj", "front"})
    EXPECT_EQ(count(html, fmt::format("data-chart=\"{}\"", chart)), 1) << chart;
  for (const char* words : {"on 512 held-out tokens", "KLD w8a16", "1.23e-02", "4.56e-04"})
    EXPECT_THAT(html, HasSubstr(words));
  EXPECT_THAT(html, Not(HasSubstr("sensitivity study of --scheme mixed only")));
  engine["sensitivity"] = {{"front", 3}, {"chosen", {1}}};
  engine["groups"][0]["schemes"] = "none";
  EXPECT_THAT(report_html(report), HasSubstr("</html>")) << "whatever a file holds";
}

TEST(ReportTest, strings_of_files_cannot_write_html) {
  const std::string evil = "</title><script>alert(1)</script><img src=x onerror='a\"b'>";
  Json report = whole_report();
  const auto poison = [&](auto&& self, Json& value) -> void {
    if (value.is_string()) value = evil;
    for (Json& member : value)
      if (value.is_structured()) self(self, member);
  };
  poison(poison, report);
  report["calibration"][evil] = evil;
  const std::string html = report_html(report);
  EXPECT_EQ(count(html, "<script"), 0);
  EXPECT_EQ(count(html, "<img"), 0);
  EXPECT_EQ(count(html, "onerror='"), 0);
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
}

TEST(ReportTest, any_document_makes_a_page) {
  for (const char* text :
       {"{}", "[]", "null", "3", "{\"engines\": 3}",
        "{\"engines\": [3, {\"groups\": [1, {\"weights\": 7}]}]}",
        "{\"engines\": [{\"groups\": [{\"layer\": \"x\", \"activations\": {\"before\": [null, "
        "\"a\"]}}]}]}",
        "{\"study\": [], \"figures\": [1, [2]], \"recommendation\": {\"why\": 3}}",
        "{\"engines\": [{\"groups\": [{\"layer\": 1e308, \"error\": -1e308, \"rtn_error\": "
        "0}]}]}"}) {
    const std::string html = report_html(Json::parse(text));
    EXPECT_THAT(html, HasSubstr("</html>")) << text;
  }
}

TEST(ReportTest, a_chart_without_points_is_not_drawn) {
  EXPECT_EQ(render({.id = "x", .title = "t"}), "");
  EXPECT_EQ(render({.log_y = true, .series = {{.x = {1, 2}, .y = {0, -1}}}}), "");
  EXPECT_EQ(render({.series = {{.x = {1}, .y = {std::nan("")}}}}), "");
  EXPECT_NE(render({.series = {{.x = {1}, .y = {1}}}}), "") << "one point is enough";
}

TEST(ReportTest, a_file_name_says_what_is_written) {
  EXPECT_NO_THROW(check_report_name("a/b.html"));
  EXPECT_NO_THROW(check_report_name("b.json"));
  EXPECT_THROW(check_report_name("b.pdf"), Error);
  EXPECT_THROW(check_report_name(""), Error);
}

}  // namespace
}  // namespace whit

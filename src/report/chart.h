// Charts as inline SVG: scalable, without scripts, in the page's own colours (CSS classes s0 … s5),
// every mark with its figures as a tooltip.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace whit {

// Text as it may stand in HTML and XML, between tags and in quoted attributes. Control characters
// that XML forbids become spaces.
std::string escape_html(std::string_view text);

struct Series {
  enum class Mark { kLine, kDots, kBars };
  std::string name;
  Mark mark = Mark::kDots;
  std::vector<double> x, y;         // points; those that are not finite (or not above 0 on a
                                    // logarithmic axis) are left out
  std::vector<std::string> labels;  // of points, for tooltips; may be empty
  int color = 0;
  bool named_points = false;  // labels stand beside the points, too
};

struct Chart {
  std::string id;     // names the chart in the page: "exponents"
  std::string title;  // of this chart among its neighbours
  std::string x_label, y_label;
  bool log_y = false;
  bool x_from_zero = false;
  std::vector<Series> series;
};

// The SVG element, or an empty string where no point can be drawn.
std::string render(const Chart& chart);

}  // namespace whit

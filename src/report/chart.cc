#include "report/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace whit {
namespace {

// Units of the view box; the page scales it.
constexpr double kWidth = 420, kHeight = 230;
constexpr double kLeft = 52, kRight = 12, kTop = 26, kBottom = 38;

struct Axis {
  double low = 0, high = 1;
  bool logarithmic = false;

  double share(double value) const {  // 0 … 1 along the axis
    return logarithmic
               ? (std::log10(value) - std::log10(low)) / (std::log10(high) - std::log10(low))
               : (value - low) / (high - low);
  }
  bool holds(double value) const { return std::fabs(value) < 1e300 && (!logarithmic || value > 0); }
};

// 1, 2 or 5 times a power of ten, about `range` / `count`.
double nice_step(double range, int count) {
  const double raw = range / count, power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= raw * 0.999) return factor * power;
  return 10 * power;
}

std::vector<double> ticks(const Axis& axis, int count) {
  std::vector<double> at;
  if (axis.logarithmic) {
    const double decades = std::log10(axis.high) - std::log10(axis.low);
    const int step = std::max(1, static_cast<int>(std::ceil(decades / count)));
    for (int p = static_cast<int>(std::ceil(std::log10(axis.low) - 1e-9));
         p <= std::log10(axis.high) + 1e-9; p += step)
      at.push_back(std::pow(10, p));
    if (at.size() < 2) at = {axis.low, axis.high};
    return at;
  }
  const double step = nice_step(axis.high - axis.low, count);
  const double first = std::ceil(axis.low / step - 1e-9) * step;
  for (int i = 0; i <= 2 * count; ++i)
    if (const double value = first + i * step; value <= axis.high + step * 1e-6)
      at.push_back(std::fabs(value) < step * 1e-6 ? 0 : value);
  return at;
}

Axis axis_of(const Chart& chart, bool of_x) {
  Axis axis{.low = std::numeric_limits<double>::infinity(),
            .high = -std::numeric_limits<double>::infinity(),
            .logarithmic = !of_x && chart.log_y};
  bool bars = false;
  for (const Series& series : chart.series) {
    bars = bars || series.mark == Series::Mark::kBars;
    for (const double value : of_x ? series.x : series.y) {
      if (!axis.holds(value)) continue;
      axis.low = std::min(axis.low, value);
      axis.high = std::max(axis.high, value);
    }
  }
  if (axis.low > axis.high) return axis;  // nothing can be drawn
  if (of_x ? chart.x_from_zero : (bars && !axis.logarithmic)) axis.low = std::min(axis.low, 0.0);
  if (axis.logarithmic) {
    axis.low /= 1.3;
    axis.high *= 1.3;
    return axis;
  }
  const double range = axis.high - axis.low;
  const double margin = range > 0 ? 0.05 * range : std::max(1e-9, 0.5 * std::fabs(axis.high));
  axis.high += margin;
  if (axis.low != 0 || range <= 0) axis.low -= of_x && bars ? 0.5 : margin;
  return axis;
}

class Drawing {
 public:
  Drawing(const Chart& chart, const Axis& x, const Axis& y) : chart_(chart), x_(x), y_(y) {}

  std::string run() {
    out_ = fmt::format(
        "<svg class=\"chart\" data-chart=\"{}\" viewBox=\"0 0 {} {}\" role=\"img\" "
        "xmlns=\"http://www.w3.org/2000/svg\"><title>{}</title>",
        escape_html(chart_.id), kWidth, kHeight, escape_html(chart_.title));
    text(kLeft, 15, "start", "head", chart_.title);
    frame();
    for (const Series& series : chart_.series) draw(series);
    return out_ + "</svg>";
  }

 private:
  double px(double value) const { return kLeft + x_.share(value) * (kWidth - kLeft - kRight); }
  double py(double value) const {
    return kHeight - kBottom - y_.share(value) * (kHeight - kTop - kBottom);
  }

  void text(double x, double y, const char* anchor, const char* style, std::string_view content) {
    out_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>",
                        x, y, anchor, style, escape_html(content));
  }

  void frame() {
    for (const double value : ticks(y_, 5)) {
      out_ += fmt::format(
          "<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", kLeft,
          kWidth - kRight, py(value), py(value));
      text(kLeft - 5, py(value) + 3.5, "end", "tick", fmt::format("{:.3g}", value));
    }
    for (const double value : ticks(x_, 7))
      text(px(value), kHeight - kBottom + 14, "middle", "tick", fmt::format("{:.4g}", value));
    out_ += fmt::format(
        "<line class=\"axis\" x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>", kLeft,
        kWidth - kRight, kHeight - kBottom);
    text((kLeft + kWidth - kRight) / 2, kHeight - 6, "middle", "tick", chart_.x_label);
    out_ += fmt::format(
        "<text transform=\"translate(11 {:.1f}) rotate(-90)\" text-anchor=\"middle\" "
        "class=\"tick\">{}</text>",
        (kTop + kHeight - kBottom) / 2, escape_html(chart_.y_label));
  }

  std::string tooltip(const Series& series, size_t i) const {
    return fmt::format("<title>{}{}{}: {:.4g}</title>", escape_html(series.name),
                       series.name.empty() ? "" : ", ",
                       i < series.labels.size() ? escape_html(series.labels[i])
                                                : fmt::format("{:.4g}", series.x[i]),
                       series.y[i]);
  }

  void draw(const Series& series) {
    std::string path;
    const size_t count = std::min(series.x.size(), series.y.size());
    const double bar = std::max(
        0.8, 0.7 * (kWidth - kLeft - kRight) / static_cast<double>(std::max<size_t>(1, count)));
    for (size_t i = 0; i < count; ++i) {
      if (!x_.holds(series.x[i]) || !y_.holds(series.y[i])) continue;
      const double x = px(series.x[i]), y = py(series.y[i]);
      switch (series.mark) {
        case Series::Mark::kLine:
          path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x, y);
          break;
        case Series::Mark::kDots:
          out_ +=
              fmt::format("<circle class=\"s{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\">{}</circle>",
                          series.color, x, y, tooltip(series, i));
          break;
        case Series::Mark::kBars: {
          const double base = y_.logarithmic ? kHeight - kBottom : py(0);
          out_ += fmt::format(
              "<rect class=\"s{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" "
              "height=\"{:.1f}\">{}</rect>",
              series.color, x - bar / 2, std::min(y, base), bar, std::max(0.5, std::fabs(base - y)),
              tooltip(series, i));
          break;
        }
      }
      if (series.named_points && i < series.labels.size()) {
        const bool right_half = x > (kLeft + kWidth) / 2;
        text(x + (right_half ? -6 : 6), y - 5, right_half ? "end" : "start", "label",
             series.labels[i]);
      }
    }
    if (!path.empty())
      out_ += fmt::format("<path class=\"l{}\" d=\"{}\"><title>{}</title></path>", series.color,
                          path, escape_html(series.name));
  }

  const Chart& chart_;
  const Axis &x_, &y_;
  std::string out_;
};

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t' ? ' ' : c;
    }
  }
  return out;
}

std::string render(const Chart& chart) {
  const Axis x = axis_of(chart, true), y = axis_of(chart, false);
  if (x.low > x.high || y.low > y.high) return "";
  return Drawing(chart, x, y).run();
}

}  // namespace whit

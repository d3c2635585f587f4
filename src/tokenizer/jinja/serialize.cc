// Numbers as Python prints them, json.dumps, str.format and the % operator.
#include <algorithm>
#include <cmath>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/strings.h"

namespace whit::jinja {
namespace {

void append_json_string(const Text& text, const JsonStyle& style, TextBuilder& out) {
  out.append("\"");
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = code_point_at(text.bytes, pos);
    const uint32_t code = c.value;
    std::string escaped;
    if (code == '"' || code == '\\')
      escaped = {'\\', static_cast<char>(code)};
    else if (code == '\n')
      escaped = "\\n";
    else if (code == '\r')
      escaped = "\\r";
    else if (code == '\t')
      escaped = "\\t";
    else if (code == '\f')
      escaped = "\\f";
    else if (code == '\b')
      escaped = "\\b";
    else if (code < 0x20 || (style.ensure_ascii && code >= 0x7F && code < 0x10000))
      escaped = code == 0x7F ? "" : fmt::format("\\u{:04x}", code);
    else if (style.ensure_ascii && code >= 0x10000)
      escaped = fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((code - 0x10000) >> 10),
                            0xDC00 + ((code - 0x10000) & 0x3FF));
    if (escaped.empty())
      out.append(text, pos, pos + c.bytes);
    else
      out.append(escaped, text.marked_at(pos));
    pos += c.bytes;
  }
  out.append("\"");
}

std::string json_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return float_text(value);
}

// A dict's key as json.dumps writes it.
Text json_key(Interpreter& run, Value key) {
  switch (key.type) {
    case Type::kString:
      return *key.text;
    case Type::kNone:
      return Text("null");
    case Type::kBool:
      return Text(key.boolean ? "true" : "false");
    case Type::kFloat:
      return Text(json_float(key.real));
    case Type::kInt:
    case Type::kUnsigned:
      return run.to_text(key);
    default:
      run.fail("a key of type {} cannot be written as JSON", run.type_name(key));
  }
}

class JsonWriter {
 public:
  JsonWriter(Interpreter& run, const JsonStyle& style, TextBuilder& out)
      : run_(run), style_(style), out_(out) {}

  void write(Value value, int level) {
    const Interpreter::Depth depth(run_);
    run_.step();
    run_.charge(16);
    switch (value.type) {
      case Type::kNone:
        return out_.append("null");
      case Type::kBool:
        return out_.append(value.boolean ? "true" : "false");
      case Type::kInt:
        return out_.append(std::to_string(value.integer));
      case Type::kUnsigned:
        return out_.append(std::to_string(value.natural));
      case Type::kFloat:
        return out_.append(json_float(value.real));
      case Type::kString:
        run_.charge(value.text->size());
        return append_json_string(*value.text, style_, out_);
      case Type::kList:
      case Type::kTuple:
        return write_list(value.list->items, level);
      case Type::kDict:
        return write_dict(*value.dict, level);
      default:
        run_.fail("a value of type {} cannot be written as JSON", run_.type_name(value));
    }
  }

 private:
  void new_line(int level) {
    if (!style_.indented) return;
    run_.charge(style_.indent.size() * static_cast<size_t>(level));
    out_.append("\n");
    for (int i = 0; i < level; ++i) out_.append(style_.indent);
  }

  void write_list(const std::vector<Value>& items, int level) {
    if (items.empty()) return out_.append("[]");
    out_.append("[");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.append(style_.item_separator);
      new_line(level + 1);
      write(items[i], level + 1);
    }
    new_line(level);
    out_.append("]");
  }

  void write_dict(const Dict& dict, int level) {
    if (dict.entries.empty()) return out_.append("{}");
    std::vector<std::pair<Value, Value>> entries = dict.entries;
    if (style_.sort_keys)
      std::stable_sort(entries.begin(), entries.end(), [&](const auto& a, const auto& b) {
        return run_.compare(a.first, b.first) < 0;
      });
    out_.append("{");
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_.append(style_.item_separator);
      new_line(level + 1);
      append_json_string(json_key(run_, entries[i].first), style_, out_);
      out_.append(style_.key_separator);
      write(entries[i].second, level + 1);
    }
    new_line(level);
    out_.append("}");
  }

  Interpreter& run_;
  const JsonStyle& style_;
  TextBuilder& out_;
};

}  // namespace

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", value);  // the shortest text that reads back the same
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

void append_json(Interpreter& run, Value value, const JsonStyle& style, TextBuilder& out) {
  JsonWriter(run, style, out).write(value, 0);
}

Value format_braces(Interpreter& run, const Text& format, const Arguments& arguments) {
  TextBuilder out;
  const std::string_view bytes = format.bytes;
  run.scanned(bytes.size());
  size_t automatic = 0;
  for (size_t pos = 0; pos < bytes.size();) {
    const char c = bytes[pos];
    if ((c == '{' || c == '}') && pos + 1 < bytes.size() && bytes[pos + 1] == c) {
      out.append(format, pos, pos + 1);
      pos += 2;
      continue;
    }
    if (c == '}') run.fail("a single '}}' in a format string");
    if (c != '{') {
      const size_t next = std::min(bytes.find_first_of("{}", pos), bytes.size());
      out.append(format, pos, next);
      pos = next;
      continue;
    }
    const size_t end = bytes.find('}', pos);
    if (end == std::string_view::npos) run.fail("a '{{' without its '}}' in a format string");
    const std::string_view field = bytes.substr(pos + 1, end - pos - 1);
    const Value* value = nullptr;
    if (field.find_first_of(":!.[{") != std::string_view::npos)
      run.fail(ErrorKind::kUnsupported,
               fmt::format("the format field {{{}}} is not supported (only names and numbers are)",
                           field));
    if (field.find_first_not_of("0123456789") == std::string_view::npos && field.size() < 6) {
      const size_t position = field.empty() ? automatic++ : std::stoul(std::string(field));
      if (position < arguments.positional.size()) value = &arguments.positional[position];
    } else {
      for (const auto& [name, named] : arguments.named)
        if (name == field) value = &named;
    }
    if (!value) run.fail("the format field {{{}}} has no value", field);
    run.append_text(*value, out);
    pos = end + 1;
  }
  return run.make(out.take());
}

Value format_percent(Interpreter& run, const Text& format, Value arguments) {
  std::vector<Value> values{arguments};
  if (arguments.is(Type::kTuple)) values = arguments.list->items;
  TextBuilder out;
  const std::string_view bytes = format.bytes;
  run.scanned(bytes.size());
  size_t used = 0;
  for (size_t pos = 0; pos < bytes.size();) {
    if (bytes[pos] != '%') {
      const size_t next = std::min(bytes.find('%', pos), bytes.size());
      out.append(format, pos, next);
      pos = next;
      continue;
    }
    size_t end = pos + 1;
    int precision = -1;
    if (end < bytes.size() && bytes[end] == '.') {
      precision = 0;
      for (++end; end < bytes.size() && bytes[end] >= '0' && bytes[end] <= '9'; ++end)
        precision = std::min(precision * 10 + (bytes[end] - '0'), 100);
    }
    if (end >= bytes.size()) run.fail("an incomplete % format");
    const char kind = bytes[end];
    pos = end + 1;
    if (kind == '%') {
      out.append("%");
      continue;
    }
    if (used >= values.size()) run.fail("not enough values for a % format");
    const Value value = values[used++];
    if (kind == 's' && precision < 0) {
      run.append_text(value, out);
    } else if (kind == 'r' && precision < 0) {
      run.append_repr(value, out);
    } else if ((kind == 'd' || kind == 'i') && precision < 0) {
      if (!value.is_number()) run.fail("%d needs a number, not {}", run.type_name(value));
      if (value.is_integer())
        out.append(std::to_string(value.as_integer()));
      else if (std::fabs(value.as_real()) < 9e18)
        out.append(std::to_string(static_cast<int64_t>(value.as_real())));
      else
        run.fail("%d: the number is too large");
    } else if (kind == 'f') {
      if (!value.is_number()) run.fail("%f needs a number, not {}", run.type_name(value));
      out.append(fmt::format("{:.{}f}", value.as_real(), precision < 0 ? 6 : precision));
    } else {
      run.fail(ErrorKind::kUnsupported,
               fmt::format("the format %{} is not supported (%s, %r, %d, %f are)", kind));
    }
  }
  if (used < values.size() && arguments.is(Type::kTuple))
    run.fail("too many values for a % format");
  if (used == 0 && !arguments.is(Type::kDict) && !arguments.is(Type::kTuple))
    run.fail("not all values were used by a % format");
  return run.make(out.take());
}

}  // namespace whit::jinja

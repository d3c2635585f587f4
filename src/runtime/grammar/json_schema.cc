// JSON Schema (draft 2020-12, and what draft 7 writes otherwise) to a grammar of its instances.
//
// Every text of the grammar satisfies the schema; not every instance is a text of it: members come
// in the order of "properties", none beyond those where any are listed, characters are escaped only
// where they must be, numbers have at most 15 digits before and after the point, space between
// tokens is none, one blank, or a new line with indentation.
//
// Understood: type, enum, const, properties, required, additionalProperties, items, prefixItems,
// minItems, maxItems, minLength, maxLength, pattern, format (date, time, date-time, uuid, ipv4),
// minimum, maximum, exclusiveMinimum, exclusiveMaximum, anyOf, oneOf of alternatives that exclude
// each other, allOf of one, $ref within the document (also recursive), $defs, definitions. Notes
// (title, description, default, examples, …) change nothing. Any other keyword is refused by name.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/error.h"
#include "runtime/grammar/compile.h"
#include "runtime/grammar/json_grammar.h"
#include "runtime/grammar/regex.h"

namespace whit {
namespace {

constexpr int kMaxDepth = 64;
constexpr int64_t kMaxCount = 10'000;  // of items and characters

const std::set<std::string> kNotes = {
    "title",      "description", "default",   "examples", "$schema",     "$id",          "$comment",
    "deprecated", "readOnly",    "writeOnly", "$defs",    "definitions", "discriminator"};

const std::map<std::string, std::string> kFormats = {
    {"date", "[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"},
    {"time",
     "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-"
     "5][0-9])"},
    {"date-time",
     "[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
     "(\\.["
     "0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"},
    {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
    {"ipv4",
     "((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|"
     "[1-9]?[0-9])"},
};

class SchemaCompiler : public JsonGrammar {
 public:
  explicit SchemaCompiler(const Json& root) : root_(root) {}

  Expr schema(const Json& value, const std::string& where, int depth) {
    if (depth > kMaxDepth)
      throw Error(ErrorKind::kResource, "{}: nested deeper than {} levels", where, kMaxDepth);
    if (value.is_boolean()) return value.get<bool>() ? any_value() : builder.never();
    if (!value.is_object()) refuse(where, "a schema must be an object, true or false");
    if (const auto ref = value.find("$ref"); ref != value.end()) {
      only(value, where, {"$ref"});
      return reference(*ref, where);
    }
    for (const char* key : {"anyOf", "oneOf", "allOf"})
      if (value.contains(key)) return combination(value, key, where, depth);
    if (value.contains("const")) {
      only(value, where, {"const", "type"});
      return literals(value, Json::array({value["const"]}), where);
    }
    if (value.contains("enum")) {
      only(value, where, {"enum", "type"});
      if (!value["enum"].is_array()) refuse(where, "\"enum\" must be a list");
      return literals(value, value["enum"], where);
    }
    return typed(value, where, depth);
  }

 private:
  [[noreturn]] static void refuse(const std::string& where, const std::string& what) {
    throw Error(ErrorKind::kInvalidArgument, "{}: {}", where, what);
  }

  // Every keyword but those and notes is refused.
  static void only(const Json& value, const std::string& where, const std::set<std::string>& keys) {
    for (const auto& [key, unused] : value.items())
      if (!keys.contains(key) && !kNotes.contains(key))
        refuse(where, fmt::format("\"{}\" is not supported here", key.substr(0, 60)));
  }

  static bool has_type(const Json& value, const std::string& type) {
    if (type == "string") return value.is_string();
    if (type == "integer")
      return value.is_number_integer() ||
             (value.is_number_float() && value.get<double>() == std::floor(value.get<double>()));
    if (type == "number") return value.is_number();
    if (type == "boolean") return value.is_boolean();
    if (type == "null") return value.is_null();
    if (type == "array") return value.is_array();
    return type == "object" && value.is_object();
  }

  static std::vector<std::string> types_of(const Json& value, const std::string& where) {
    static const std::set<std::string> kTypes = {"string", "integer", "number", "boolean",
                                                 "null",   "array",   "object"};
    std::vector<std::string> types;
    const auto found = value.find("type");
    if (found == value.end()) return types;
    const Json list = found->is_array() ? *found : Json::array({*found});
    for (const Json& each : list) {
      if (!each.is_string() || !kTypes.contains(each.get<std::string>()))
        refuse(where, "\"type\" must be the name of a JSON type, or a list of such names");
      types.push_back(each.get<std::string>());
    }
    if (types.empty()) refuse(where, "\"type\" is an empty list");
    return types;
  }

  Expr literals(const Json& value, const Json& list, const std::string& where) {
    const std::vector<std::string> types = types_of(value, where);
    std::vector<Expr> options;
    for (const Json& each : list) {
      const bool fits = types.empty() ||
                        std::any_of(types.begin(), types.end(),
                                    [&](const std::string& type) { return has_type(each, type); });
      if (fits) options.push_back(token(each.dump()));
    }
    return builder.choice(std::move(options));
  }

  Expr reference(const Json& ref, const std::string& where) {
    if (!ref.is_string() || !ref.get_ref<const std::string&>().starts_with('#'))
      refuse(where, "\"$ref\" must point into the schema itself: \"#/$defs/…\"");
    const auto pointer = ref.get<std::string>().substr(1);
    const auto [found, is_new] = references_.try_emplace(pointer, 0);
    if (!is_new) return builder.call(found->second);
    const Json* target = nullptr;
    try {
      target = &root_.at(Json::json_pointer(pointer));
    } catch (const Json::exception&) {
      refuse(where, fmt::format("\"$ref\" {} points to nothing", ref.dump()));
    }
    const Rule id = builder.add_rule("#" + pointer);
    found->second = id;
    // Depth begins anew: a chain of references is as long as the document at most.
    if (++reference_depth_ > kMaxDepth)
      throw Error(ErrorKind::kResource, "{}: references nested deeper than {}", where, kMaxDepth);
    builder.define(id, schema(*target, "#" + pointer, 0));
    --reference_depth_;
    return builder.call(id);
  }

  // Follows references; null where the schema is not an object.
  const Json* resolved(const Json& value) const {
    const Json* at = &value;
    for (int hops = 0; hops < kMaxDepth && at->is_object(); ++hops) {
      const auto ref = at->find("$ref");
      if (ref == at->end()) return at;
      if (!ref->is_string() || !ref->get_ref<const std::string&>().starts_with('#')) return nullptr;
      try {
        at = &root_.at(Json::json_pointer(ref->get<std::string>().substr(1)));
      } catch (const Json::exception&) {
        return nullptr;
      }
    }
    return nullptr;
  }

  // Whether no instance satisfies both: of different types, different constants, or objects that
  // differ in a required member's constant.
  bool exclude_each_other(const Json& a, const Json& c, int depth) const {
    const Json *x = resolved(a), *y = resolved(c);
    if (x == nullptr || y == nullptr || depth > 4) return false;
    const auto values = [](const Json& each) -> Json {
      if (each.contains("const")) return Json::array({each["const"]});
      return each.contains("enum") && each["enum"].is_array() ? each["enum"] : Json();
    };
    const Json of_x = values(*x), of_y = values(*y);
    if (of_x.is_array() && of_y.is_array())
      return std::none_of(of_x.begin(), of_x.end(), [&](const Json& each) {
        return std::find(of_y.begin(), of_y.end(), each) != of_y.end();
      });
    const std::vector<std::string> types_x = types_of(*x, "oneOf"), types_y = types_of(*y, "oneOf");
    if (!types_x.empty() && !types_y.empty()) {
      const bool common = std::any_of(types_x.begin(), types_x.end(), [&](const std::string& type) {
        return std::any_of(types_y.begin(), types_y.end(), [&](const std::string& other) {
          return type == other || (type == "integer" && other == "number") ||
                 (type == "number" && other == "integer");
        });
      });
      if (!common) return true;
    }
    if (types_x != std::vector<std::string>{"object"} || types_y != types_x) return false;
    const auto required = [](const Json& each, const std::string& key) {
      const auto list = each.find("required");
      return list != each.end() && list->is_array() &&
             std::find(list->begin(), list->end(), key) != list->end();
    };
    const auto of = [](const Json& each) {
      return each.contains("properties") && each["properties"].is_object() ? each["properties"]
                                                                           : Json::object();
    };
    const Json members_x = of(*x), members_y = of(*y);
    for (const auto& [key, member] : members_x.items())
      if (members_y.contains(key) && required(*x, key) && required(*y, key) &&
          exclude_each_other(member, members_y[key], depth + 1))
        return true;
    return false;
  }

  Expr combination(const Json& value, const std::string& key, const std::string& where, int depth) {
    only(value, where, {key});
    const Json& list = value[key];
    const std::string inner = where + "." + key;
    if (!list.is_array() || list.empty() || list.size() > 1000)
      refuse(where, fmt::format("\"{}\" must be a list of schemas", key));
    if (key == "allOf" && list.size() > 1)
      refuse(where, "\"allOf\" of more than one schema is not supported");
    if (key == "oneOf") {
      if (list.size() > 64) refuse(where, "\"oneOf\" of more than 64 schemas is not supported");
      for (size_t i = 0; i < list.size(); ++i)
        for (size_t j = 0; j < i; ++j)
          if (!exclude_each_other(list[i], list[j], 0))
            refuse(inner,
                   fmt::format("alternatives {} and {} may both hold; use \"anyOf\", or give "
                               "each a required member with a \"const\" of its own",
                               j, i));
    }
    std::vector<Expr> options;
    for (size_t i = 0; i < list.size(); ++i)
      options.push_back(schema(list[i], fmt::format("{}[{}]", inner, i), depth + 1));
    return builder.choice(std::move(options));
  }

  Expr typed(const Json& value, const std::string& where, int depth) {
    std::vector<std::string> types = types_of(value, where);
    static const std::map<std::string, std::set<std::string>> kKeywords = {
        {"object", {"properties", "required", "additionalProperties"}},
        {"array", {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"}},
        {"string", {"minLength", "maxLength", "pattern", "format"}},
        {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
        {"integer", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
        {"boolean", {}},
        {"null", {}}};
    if (types.empty()) {
      // What keywords speak of tells the type; a schema without any allows everything.
      for (const auto& [type, keywords] : kKeywords)
        if (type != "integer" &&
            std::any_of(keywords.begin(), keywords.end(),
                        [&](const std::string& key) { return value.contains(key); }))
          types.push_back(type);
      if (types.empty()) {
        only(value, where, {});
        return any_value();
      }
    }
    std::set<std::string> known = {"type"};
    for (const std::string& type : types)
      known.insert(kKeywords.at(type).begin(), kKeywords.at(type).end());
    only(value, where, known);
    std::vector<Expr> options;
    for (const std::string& type : types) {
      if (type == "object") options.push_back(object(value, where, depth));
      if (type == "array") options.push_back(array(value, where, depth));
      if (type == "string") options.push_back(string(value, where));
      if (type == "integer") options.push_back(number(value, where, true));
      if (type == "number") options.push_back(number(value, where, false));
      if (type == "boolean") options.push_back(builder.choice({token("true"), token("false")}));
      if (type == "null") options.push_back(token("null"));
    }
    return builder.choice(std::move(options));
  }

  static int64_t count(const Json& value, const char* key, int64_t fallback,
                       const std::string& where) {
    const auto found = value.find(key);
    if (found == value.end()) return fallback;
    const double number = found->is_number() ? found->get<double>() : -1;
    if (!(number >= 0) || number != std::floor(number))
      refuse(where, fmt::format("\"{}\" must be a whole number", key));
    if (number > static_cast<double>(kMaxCount))
      refuse(where, fmt::format("\"{}\" above {} is not supported", key, kMaxCount));
    return static_cast<int64_t>(number);
  }

  Expr string(const Json& value, const std::string& where) {
    const int64_t least = count(value, "minLength", 0, where);
    const int64_t most = count(value, "maxLength", -1, where);
    const bool sized = least > 0 || most >= 0;
    const bool has_pattern = value.contains("pattern"), has_format = value.contains("format");
    if (sized + has_pattern + has_format > 1)
      refuse(where, "only one of lengths, \"pattern\" and \"format\" is supported at a time");
    if (!has_pattern && !has_format) return sized ? quoted(characters(least, most)) : any_string();
    const Json& text = value[has_pattern ? "pattern" : "format"];
    if (!text.is_string()) refuse(where, "\"pattern\" and \"format\" must be texts");
    std::string pattern = text.get<std::string>();
    if (has_format) {
      const auto found = kFormats.find(pattern);
      if (found == kFormats.end())
        refuse(where, fmt::format("the format {} is not supported", text.dump()));
      pattern = "^" + found->second + "$";
    }
    const CharacterWriter write = [&](const std::vector<CodePointRange>& ranges) {
      return write_escaped(ranges);
    };
    const RegexText parsed = parse_regex(builder, pattern, write);
    // A pattern may be found anywhere.
    const auto rest = [&](bool anchored) { return anchored ? builder.empty() : characters(0, -1); };
    return quoted(
        builder.sequence({rest(parsed.anchored_begin), parsed.body, rest(parsed.anchored_end)}));
  }

  Expr number(const Json& value, const std::string& where, bool whole) {
    constexpr double kLargest = 999'999'999'999'999;
    double least = -INFINITY, most = INFINITY;
    bool least_open = false, most_open = false, bounded = false;
    for (const char* key : {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}) {
      const auto found = value.find(key);
      if (found == value.end()) continue;
      if (!found->is_number() || std::fabs(found->get<double>()) > kLargest)
        refuse(where, fmt::format("\"{}\" must be a number of at most {} digits", key, kMaxDigits));
      const auto bound = found->get<double>();
      const std::string_view name = key;
      const bool open = name.starts_with("exclusive");
      bounded = true;
      if (name.ends_with("inimum") && (bound > least || (bound == least && open))) {
        least = bound;
        least_open = open;
      } else if (name.ends_with("aximum") && (bound < most || (bound == most && open))) {
        most = bound;
        most_open = open;
      }
    }
    if (!bounded) return whole ? any_integer() : any_number();
    least = std::max(least, -kLargest);
    most = std::min(most, kLargest);
    // Whole numbers: first … last.
    const auto first =
        static_cast<int64_t>(std::ceil(least)) + (least_open && least == std::ceil(least) ? 1 : 0);
    const auto last =
        static_cast<int64_t>(std::floor(most)) - (most_open && most == std::floor(most) ? 1 : 0);
    std::vector<Expr> options;
    if (first <= last && last >= 0) options.push_back(naturals(std::max<int64_t>(0, first), last));
    if (first <= last && first < 0)
      options.push_back(
          builder.sequence({token("-"), naturals(std::max<int64_t>(1, -last), -first)}));
    if (!whole) {
      // a.f with 0 < f < 1 lies strictly between a and a + 1.
      const auto low = static_cast<int64_t>(std::ceil(least)),
                 high = static_cast<int64_t>(std::floor(most)) - 1;
      if (high >= 0 && low <= high)
        options.push_back(
            builder.sequence({naturals(std::max<int64_t>(0, low), high), fraction()}));
      // −a.f lies between −a − 1 and −a.
      if (low < 0 && low <= high)
        options.push_back(builder.sequence(
            {token("-"), naturals(std::max<int64_t>(0, -high - 1), -low - 1), fraction()}));
    }
    return builder.choice(std::move(options));
  }

  Expr array(const Json& value, const std::string& where, int depth) {
    if (value.contains("uniqueItems") && value["uniqueItems"] != false)
      refuse(where, "\"uniqueItems\" is not supported");
    const int64_t least = count(value, "minItems", 0, where);
    const int64_t most = count(value, "maxItems", -1, where);
    std::vector<Expr> first;
    Json items = value.value("items", Json(true));
    const Json* prefix = value.contains("prefixItems") ? &value["prefixItems"]
                         : items.is_array()            ? &items
                                                       : nullptr;
    if (prefix != nullptr) {
      if (!prefix->is_array() || prefix->size() > 1000)
        refuse(where, "\"prefixItems\" must be a list of schemas");
      for (size_t i = 0; i < prefix->size(); ++i)
        first.push_back(
            schema((*prefix)[i], fmt::format("{}.prefixItems[{}]", where, i), depth + 1));
      // A list shorter than the prefix is valid too; it is not generated.
      if (items.is_array() || !value.contains("items")) items = false;
      if (most >= 0 && most < std::ssize(first)) first.resize(most);
    }
    const Expr item = schema(items, where + ".items", depth + 1);
    const int64_t bound = items == false && most < 0 ? static_cast<int64_t>(first.size()) : most;
    return as_rule(where, list_of(item, first, least, bound));
  }

  Expr object(const Json& value, const std::string& where, int depth) {
    const Json properties = value.value("properties", Json::object());
    if (!properties.is_object() || properties.size() > 2000)
      refuse(where, "\"properties\" must be an object of schemas");
    const Json additional = value.value("additionalProperties", Json(true));
    std::set<std::string> required;
    if (value.contains("required")) {
      if (!value["required"].is_array()) refuse(where, "\"required\" must be a list of names");
      for (const Json& name : value["required"]) {
        if (!name.is_string()) refuse(where, "\"required\" must be a list of names");
        required.insert(name.get<std::string>());
      }
    }
    std::vector<std::pair<std::string, Expr>> members;
    for (const auto& [name, member] : properties.items())
      members.emplace_back(name,
                           schema(member, where + ".properties." + name.substr(0, 60), depth + 1));
    for (const std::string& name : required)
      if (!properties.contains(name))
        members.emplace_back(name, schema(additional, where + ".additionalProperties", depth + 1));
    if (members.empty()) {
      if (additional == true) return any_object();
      if (additional == false) return builder.sequence({token("{"), space(), token("}")});
      return as_rule(
          where,
          object_of(any_string(), schema(additional, where + ".additionalProperties", depth + 1)));
    }
    // From the last member to the first: what follows where a member was written before, and where
    // none was.
    Expr after = builder.empty(), begin = builder.empty();
    for (auto member = members.rbegin(); member != members.rend(); ++member) {
      const Expr pair = as_rule(where + "." + member->first,
                                builder.sequence({token(Json(member->first).dump()), token(":"),
                                                  space(), member->second}));
      const Expr next = builder.sequence({token(","), space(), pair});
      const bool must = required.contains(member->first);
      const Expr then = after;
      begin = must ? builder.sequence({pair, then})
                   : builder.choice({builder.sequence({pair, then}), begin});
      after = as_rule(where + " after " + member->first,
                      builder.sequence({must ? next : builder.optional(next), then}));
    }
    return as_rule(where, builder.sequence({token("{"), space(), begin, space(), token("}")}));
  }

  const Json& root_;
  std::map<std::string, Rule> references_;
  int reference_depth_ = 0;
};

}  // namespace

std::shared_ptr<const Grammar> compile_json_schema(const Json& schema,
                                                   std::shared_ptr<const TokenTrie> tokens) {
  SchemaCompiler compiler(schema);
  const GrammarBuilder::Rule root = compiler.builder.add_rule("root");
  compiler.builder.define(
      root, schema.is_null() ? compiler.any_object() : compiler.schema(schema, "the schema", 0));
  return compiler.builder.build(root, std::move(tokens));
}

std::shared_ptr<const Grammar> compile_tool_call(
    const std::vector<std::pair<std::string, Json>>& tools,
    std::shared_ptr<const TokenTrie> tokens) {
  // References in a tool's parameters point into them.
  Json document = Json::object();
  for (const auto& [name, parameters] : tools)
    document[name] = parameters.is_null() ? Json{{"type", "object"}} : parameters;
  GrammarBuilder::Rule root;
  if (tools.size() == 1) {
    SchemaCompiler compiler(document[tools[0].first]);
    root = compiler.builder.add_rule("root");
    const auto arguments = compiler.schema(document[tools[0].first], "parameters", 0);
    compiler.builder.define(
        root, compiler.builder.sequence(
                  {compiler.builder.literal("<tool_call>\n{\"name\": " +
                                            Json(tools[0].first).dump() + ", \"arguments\": "),
                   arguments, compiler.builder.literal("}\n</tool_call>")}));
    return compiler.builder.build(root, std::move(tokens));
  }
  SchemaCompiler compiler(document);
  root = compiler.builder.add_rule("root");
  std::vector<GrammarBuilder::Expr> options;
  for (const auto& [name, parameters] : tools) {
    const auto arguments = compiler.schema(document[name], "parameters of " + name, 0);
    options.push_back(compiler.builder.sequence(
        {compiler.builder.literal("{\"name\": " + Json(name).dump() + ", \"arguments\": "),
         arguments}));
  }
  compiler.builder.define(root,
                          compiler.builder.sequence({compiler.builder.literal("<tool_call>\n"),
                                                     compiler.builder.choice(std::move(options)),
                                                     compiler.builder.literal("}\n</tool_call>")}));
  return compiler.builder.build(root, std::move(tokens));
}

}  // namespace whit

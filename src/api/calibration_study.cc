#include "api/calibration_study.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "api/loaded_model.h"
#include "base/embedded.h"
#include "base/file.h"
#include "base/progress.h"
#include "calibrate/coverage.h"
#include "evaluate/evaluate.h"

namespace whit {
namespace {

constexpr int64_t kRandomTokens = 2048;
// A set is named unfit for a text where its distance is this many times what the text's halves have
// between them, or where it costs this many times the divergence that the best set costs there.
constexpr double kUnfitDistance = 3, kUnfitDivergence = 1.25;
constexpr double kFewSeen = 0.5;  // of the text's tokens

// mean|x| of every channel of every input of linears.
using Magnitudes = std::vector<std::vector<float>>;

Magnitudes magnitudes(const Model& model, const CalibrationData& data, cpu::Isa isa,
                      ThreadPool& pool) {
  const WeightProvider weights = model.weights();
  LayerStream stream(model.config(), model.graph(), weights, data, isa, pool);
  Magnitudes all;
  for (int layer = 0; layer < model.graph().layers(); ++layer) {
    check_interrupt();
    for (InputStats& stats : stream.observe(layer, weights, LayerStream::Advance::kYes)) {
      const auto mean = stats.mean_abs.f32();
      all.emplace_back(mean.begin(), mean.end());
    }
  }
  return all;
}

double distance(const Magnitudes& a, const Magnitudes& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    double of_input = 0;
    for (size_t c = 0; c < a[i].size(); ++c)
      of_input += std::fabs(std::log2(std::max(a[i][c], 1e-12f) / std::max(b[i][c], 1e-12f)));
    sum += of_input / static_cast<double>(std::max<size_t>(1, a[i].size()));
  }
  return sum / static_cast<double>(std::max<size_t>(1, a.size()));
}

// A text's blocks as calibration data: all of them, the even or the odd ones.
CalibrationData blocks_of(const StudyText& text, int64_t length, int64_t most, int first,
                          int step) {
  CalibrationData data;
  data.length = length;
  data.source = text.name;
  const int64_t blocks = std::min<int64_t>(most, static_cast<int64_t>(text.ids.size()) / length);
  for (int64_t i = first; i < blocks; i += step) {
    data.ids.insert(data.ids.end(), text.ids.begin() + i * length,
                    text.ids.begin() + (i + 1) * length);
    ++data.samples;
  }
  return data;
}

double covered(const CalibrationData& set, const StudyText& text) {
  const std::set<int32_t> seen(set.ids.begin(), set.ids.end());
  const auto count = std::count_if(text.ids.begin(), text.ids.end(),
                                   [&](int32_t id) { return seen.contains(id); });
  return static_cast<double>(count) / static_cast<double>(text.ids.size());
}

std::string recipe_name(const Recipe& recipe) {
  return fmt::format("{} {}", recipe.mode, recipe.scheme.name());
}

class Study {
 public:
  Study(const Model& model, const std::vector<StudySet>& sets, const std::vector<Recipe>& recipes,
        const std::vector<StudyText>& texts, const StudyOptions& options, ThreadPool& pool)
      : model_(model),
        sets_(sets),
        recipes_(recipes),
        texts_(texts),
        options_(options),
        pool_(pool) {
    if (options_.ctx_size > model.config().max_position_embeddings)
      options_.ctx_size = model.config().max_position_embeddings;
  }

  Json run() {
    for (const StudyText& text : texts_) json_["texts"].push_back(text.name);
    for (const char* list : {"sets", "rows", "changes", "notes"}) json_[list] = Json::array();
    for (const StudySet& set : sets_)
      json_["sets"].push_back({{"name", set.name},
                               {"digest", set.data.digest()},
                               {"tokens", set.data.samples * set.data.length},
                               {"warnings", set.data.warnings},
                               {"fit", Json::array()}});
    quantize();
    changes();
    fit();
    evaluate_all();
    return std::move(json_);
  }

 private:
  void note(std::string text) {
    Json& notes = json_["notes"];
    if (std::find(notes.begin(), notes.end(), Json(text)) == notes.end())
      notes.push_back(std::move(text));
  }

  void quantize() {
    for (size_t s = 0; s < sets_.size(); ++s) {
      std::vector<Recipe> recipes = recipes_;
      for (Recipe& recipe : recipes) recipe.output += fmt::format("@{}", s + 1);
      summaries_.push_back(
          quantize_model(model_, recipes, &sets_[s].data, {.isa = options_.isa}, pool_));
      for (const QuantizeSummary& summary : summaries_.back())
        for (const std::string& warning : summary.warnings)
          note(fmt::format("{}: {}", sets_[s].name, warning));
    }
  }

  // The largest |x| of a group: the threshold of static activations.
  static double threshold(const QuantizeSummary& summary, size_t group) {
    double most = 0;
    const Json activations = summary.profiles[group].value("activations", Json::object());
    for (const double value : activations.value("before", std::vector<double>()))
      most = std::max(most, value);
    return most;
  }

  void changes() {
    for (size_t r = 0; r < recipes_.size(); ++r)
      for (size_t b = 1; b < sets_.size(); ++b)
        for (size_t a = 0; a < b; ++a) {
          const QuantizeSummary &x = summaries_[a][r], &y = summaries_[b][r];
          int64_t differ = 0;
          double largest = 0;
          for (size_t g = 0; g < std::min(x.reports.size(), y.reports.size()); ++g) {
            const double change =
                std::fabs(x.reports[g].exponent.value_or(0) - y.reports[g].exponent.value_or(0));
            differ += change > 1e-9 ? 1 : 0;
            largest = std::max(largest, change);
          }
          std::vector<double> ratios;
          for (size_t g = 0; g < std::min(x.profiles.size(), y.profiles.size()); ++g) {
            const double first = threshold(x, g), second = threshold(y, g);
            if (first > 0 && second > 0)
              ratios.push_back(std::max(first, second) / std::min(first, second));
          }
          std::sort(ratios.begin(), ratios.end());
          Json change = {{"recipe", recipe_name(recipes_[r])},
                         {"sets", {sets_[a].name, sets_[b].name}},
                         {"groups", x.reports.size()},
                         {"exponents_differ", differ},
                         {"largest_exponent_change", largest}};
          if (!ratios.empty()) {
            change["median_threshold_ratio"] = ratios[ratios.size() / 2];
            change["largest_threshold_ratio"] = ratios.back();
          }
          json_["changes"].push_back(std::move(change));
        }
  }

  void fit() {
    std::vector<Magnitudes> of_sets;
    for (const StudySet& set : sets_)
      of_sets.push_back(magnitudes(model_, set.data, options_.isa, pool_));
    for (const StudyText& text : texts_) {
      const int64_t length = std::min<int64_t>(
          options_.ctx_size, std::max<int64_t>(2, static_cast<int64_t>(text.ids.size()) / 2));
      const int64_t most = std::max<int64_t>(2, options_.max_windows);
      const Magnitudes even =
          magnitudes(model_, blocks_of(text, length, most, 0, 2), options_.isa, pool_);
      const Magnitudes odd =
          magnitudes(model_, blocks_of(text, length, most, 1, 2), options_.isa, pool_);
      Magnitudes whole = even;
      for (size_t i = 0; i < whole.size(); ++i)
        for (size_t c = 0; c < whole[i].size(); ++c) whole[i][c] = (whole[i][c] + odd[i][c]) / 2;
      const double floor = distance(even, odd);
      for (size_t s = 0; s < sets_.size(); ++s) {
        const double apart = distance(of_sets[s], whole), seen = covered(sets_[s].data, text);
        json_["sets"][s]["fit"].push_back(
            {{"text", text.name}, {"distance", apart}, {"floor", floor}, {"coverage", seen}});
        if (apart > kUnfitDistance * floor)
          note(
              fmt::format("{} does not represent {}: its channels' magnitudes are {:.2f} octaves "
                          "off, {:.1f} times what two halves of that text are apart",
                          sets_[s].name, text.name, apart, apart / floor));
        else if (seen < kFewSeen)
          note(fmt::format("{} does not represent {}: it holds only {:.0f} % of its tokens",
                           sets_[s].name, text.name, 100 * seen));
      }
    }
  }

  void evaluate_all() {
    const ExecutorOptions executor{.isa = options_.isa};
    Executor original(model_.config(), model_.graph(), model_.weights(), executor, pool_);
    std::vector<std::unique_ptr<LoadedModel>> engines;
    std::vector<EvalModel> models;
    for (size_t s = 0; s < sets_.size(); ++s)
      for (size_t r = 0; r < recipes_.size(); ++r) {
        const QuantizeSummary& summary = summaries_[s][r];
        engines.push_back(std::make_unique<LoadedModel>(summary.output, executor, pool_));
        models.push_back({*engines.back()->executor, engines.back()->model.default_kv_dtype()});
        json_["rows"].push_back({{"recipe", recipe_name(recipes_[r])},
                                 {"set", sets_[s].name},
                                 {"engine", summary.output.string()},
                                 {"bits_per_weight", summary.bits_per_weight},
                                 {"cells", Json::array()}});
      }
    for (const StudyText& text : texts_) {
      const EvalOptions options{.ctx_size = options_.ctx_size,
                                .max_windows = options_.max_windows,
                                .kv_dtype = DType::kF32,
                                .reference_kv_dtype = model_.default_kv_dtype()};
      const std::vector<EvalResult> results = evaluate(models, &original, text.ids, options);
      for (size_t i = 0; i < results.size(); ++i)
        json_["rows"][i]["cells"].push_back(to_json(results[i]));
      for (size_t r = 0; r < recipes_.size(); ++r) {
        const auto kld = [&](size_t s) { return *results[s * recipes_.size() + r].kld; };
        size_t best = 0;
        for (size_t s = 1; s < sets_.size(); ++s)
          if (kld(s) < kld(best)) best = s;
        for (size_t s = 0; s < sets_.size(); ++s)
          if (kld(s) > kUnfitDivergence * kld(best))
            note(
                fmt::format("{} on {}: calibrated on {} it diverges {:.2f} times as far as "
                            "calibrated on {}",
                            recipe_name(recipes_[r]), text.name, sets_[s].name, kld(s) / kld(best),
                            sets_[best].name));
      }
    }
  }

  const Model& model_;
  const std::vector<StudySet>& sets_;
  const std::vector<Recipe>& recipes_;
  const std::vector<StudyText>& texts_;
  StudyOptions options_;
  ThreadPool& pool_;
  std::vector<std::vector<QuantizeSummary>> summaries_;  // [set][recipe]
  Json json_;
};

}  // namespace

std::vector<std::string> built_in_texts() { return {"prose", "code", "chat", "german", "random"}; }

StudyText study_text(const Model& model, const std::string& name) {
  std::error_code error;
  const auto encoded = [&](std::string_view text) {
    return StudyText{name, model.tokenizer().encode(text)};
  };
  StudyText text{name, {}};
  if (std::filesystem::is_regular_file(name, error))
    text = encoded(read_file(name, uint64_t{1} << 30));
  else if (name == "prose")
    text = encoded(embedded::eval_prose());
  else if (name == "code")
    text = encoded(embedded::eval_code());
  else if (name == "chat")
    text = encoded(embedded::eval_dialogue());
  else if (name == "german")
    text = encoded(embedded::eval_german());
  else if (name == "random") {
    std::mt19937 random(1);
    for (int64_t i = 0; i < kRandomTokens; ++i)
      text.ids.push_back(
          static_cast<int32_t>(random() % static_cast<uint64_t>(model.config().vocab_size)));
  } else {
    throw Error(ErrorKind::kNotFound,
                "--text {}: neither a file nor a built-in text (prose, code, chat, german, random)",
                name);
  }
  if (text.ids.size() < 4)
    throw Error(ErrorKind::kInvalidArgument, "--text {} has {} tokens: give more", name,
                text.ids.size());
  return text;
}

Json calibration_study(const Model& model, const std::vector<StudySet>& sets,
                       const std::vector<Recipe>& recipes, const std::vector<StudyText>& texts,
                       const StudyOptions& options, ThreadPool& pool) {
  return Study(model, sets, recipes, texts, options, pool).run();
}

}  // namespace whit

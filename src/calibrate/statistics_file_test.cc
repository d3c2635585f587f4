#include "calibrate/statistics_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "calibrate/coverage.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using ::testing::HasSubstr;
using testing::random_tokens;
using testing::ScratchDirectory;

class StatisticsFileTest : public ::testing::Test {
 protected:
  StatisticsInfo info_of(const CalibrationData& data) const {
    StatisticsInfo info{.model = "tiny", .model_digest = model_.checkpoint()->digest()};
    info.data.push_back(data.description());
    const auto windows = calibration_windows(data);
    info.tokens[0] = rows_of(windows, Split::kSearch);
    info.tokens[1] = rows_of(windows, Split::kHeldOut);
    return info;
  }

  std::filesystem::path write(const CalibrationData& data, const std::string& name) {
    const std::filesystem::path path = scratch_.path() / name;
    StatisticsWriter writer(path, model_.graph(), info_of(data));
    LayerStream stream(model_.config(), model_.graph(), model_.weights(), data, cpu::detected_isa(),
                       pool_);
    for (int layer = 0; layer < model_.graph().layers(); ++layer)
      writer.write(stream.observe_sums(layer, model_.weights(), LayerStream::Advance::kYes));
    writer.finish();
    return path;
  }

  std::vector<InputStats> observed(const CalibrationData& data) {
    LayerStream stream(model_.config(), model_.graph(), model_.weights(), data, cpu::detected_isa(),
                       pool_);
    return stream.observe(0, model_.weights(), LayerStream::Advance::kNo);
  }

  std::string refusal(const std::filesystem::path& path) {
    try {
      StatisticsFile file(path);
      for (int layer = 0; layer < model_.graph().layers(); ++layer)
        file.layer(model_.graph(), layer);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  }

  ScratchDirectory scratch_;
  ThreadPool pool_{1};
  Model model_ = Model::open(golden_model("qwen2"));
};

bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() &&
         std::memcmp(a.data<void>(), b.data<void>(), a.size() * sizeof(float)) == 0;
}

TEST_F(StatisticsFileTest, gives_back_to_the_bit_what_was_observed) {
  const CalibrationData data = random_tokens(model_, 32, 24, 5);
  const StatisticsFile file(write(data, "a"));
  const std::vector<InputStats> stored = file.layer(model_.graph(), 0), direct = observed(data);
  ASSERT_EQ(stored.size(), direct.size());
  for (size_t i = 0; i < stored.size(); ++i) {
    EXPECT_TRUE(same(stored[i].mean_abs, direct[i].mean_abs));
    EXPECT_TRUE(same(stored[i].max_abs, direct[i].max_abs));
    for (const auto split : {&InputStats::search, &InputStats::held_out}) {
      EXPECT_TRUE(same((stored[i].*split).gram, (direct[i].*split).gram));
      EXPECT_EQ((stored[i].*split).tokens, (direct[i].*split).tokens);
      ASSERT_EQ((stored[i].*split).sample_rows, (direct[i].*split).sample_rows);
      EXPECT_EQ(std::memcmp((stored[i].*split).sample.data<void>(),
                            (direct[i].*split).sample.data<void>(),
                            (stored[i].*split).sample_rows * stored[i].k * 4),
                0);
    }
  }
  EXPECT_EQ(file.info().data[0]["digest"], data.digest());
}

TEST_F(StatisticsFileTest, its_size_is_known_before) {
  const CalibrationData data = random_tokens(model_, 16, 24, 5);
  const StatisticsInfo info = info_of(data);
  const auto path = write(data, "a");
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  const int64_t promised = StatisticsWriter::bytes(model_.graph(), info.tokens);
  EXPECT_GE(size, promised);
  EXPECT_LT(size - promised, 64 << 10) << "the header";
}

// Sums over two sets are those over both, to the rounding of n f32 additions: relative n·2⁻²⁴.
TEST_F(StatisticsFileTest, merged_files_stand_for_both_sets) {
  const CalibrationData a = random_tokens(model_, 16, 24, 5), b = random_tokens(model_, 32, 24, 6);
  const StatisticsFile first(write(a, "a")), second(write(b, "b"));
  const StatisticsFile* files[] = {&first, &second};
  merge_statistics(files, model_.graph(), scratch_.path() / "both");
  const StatisticsFile both(scratch_.path() / "both");
  EXPECT_EQ(both.info().data.size(), 2u);
  const auto x = observed(a), y = observed(b);
  const std::vector<InputStats> merged = both.layer(model_.graph(), 0);
  for (size_t i = 0; i < merged.size(); ++i) {
    const auto n = static_cast<float>(merged[i].search.tokens);
    ASSERT_EQ(merged[i].search.tokens, x[i].search.tokens + y[i].search.tokens);
    const float share = static_cast<float>(x[i].search.tokens) / n;
    for (int64_t c = 0; c < merged[i].k; ++c) {
      const float mean =
          share * x[i].mean_abs.data<float>()[c] + (1 - share) * y[i].mean_abs.data<float>()[c];
      EXPECT_NEAR(merged[i].mean_abs.data<float>()[c], mean, n * 0x1p-24f * mean);
      EXPECT_EQ(merged[i].max_abs.data<float>()[c],
                std::max(x[i].max_abs.data<float>()[c], y[i].max_abs.data<float>()[c]));
      const int64_t diagonal = c * merged[i].k + c;
      const float square = share * x[i].search.gram.data<float>()[diagonal] +
                           (1 - share) * y[i].search.gram.data<float>()[diagonal];
      EXPECT_NEAR(merged[i].search.gram.data<float>()[diagonal], square, n * 0x1p-23f * square);
    }
    EXPECT_EQ(merged[i].search.sample_rows, std::min<int64_t>(512, merged[i].search.tokens));
  }
}

TEST_F(StatisticsFileTest, a_set_does_not_count_twice) {
  const CalibrationData data = random_tokens(model_, 16, 24, 5);
  const StatisticsFile file(write(data, "a")), copy(write(data, "b"));
  const StatisticsFile* files[] = {&file, &copy};
  try {
    merge_statistics(files, model_.graph(), scratch_.path() / "both");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("twice"));
  }
}

TEST_F(StatisticsFileTest, damage_anywhere_is_noticed) {
  const auto path = write(random_tokens(model_, 16, 24, 5), "a");
  const std::string good = read_file(path);
  ASSERT_EQ(refusal(path), "accepted");
  for (size_t at = 16; at < good.size(); at += good.size() / 97) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    write_file(path, bad);
    EXPECT_NE(refusal(path), "accepted") << "byte " << at;
  }
  write_file(path, good.substr(0, good.size() / 2));
  EXPECT_NE(refusal(path), "accepted");
  write_file(path, "");
  EXPECT_NE(refusal(path), "accepted");
}

// Digests vouch for what was written, not for who wrote it.
TEST_F(StatisticsFileTest, forged_content_is_refused) {
  const auto path = write(random_tokens(model_, 16, 24, 5), "a");
  const std::string good = read_file(path);
  // Overwrites `at` and makes the digest fit.
  const auto forged = [&](size_t at, std::string_view bytes) {
    std::string bad = good;
    bad.replace(at, bytes.size(), bytes);
    std::string covered;
    size_t place = 0;
    {
      const SafetensorsFile file({reinterpret_cast<const uint8_t*>(bad.data()), bad.size()}, "");
      covered = file.metadata().at("info");
      for (const StoredTensor& tensor : file.tensors()) {
        const auto* data = reinterpret_cast<const char*>(tensor.data.data());
        if (tensor.name == "digest")
          place = data - bad.data();
        else
          covered.append(data, tensor.data.size());
      }
    }
    const std::string hexadecimal =
        digest({reinterpret_cast<const uint8_t*>(covered.data()), covered.size()});
    for (size_t i = 0; i < 16; ++i)
      bad[place + i] = static_cast<char>(std::stoi(hexadecimal.substr(2 * i, 2), nullptr, 16));
    write_file(path, bad);
    return refusal(path);
  };
  const auto place_of = [&](std::string_view suffix) {
    const SafetensorsFile file({reinterpret_cast<const uint8_t*>(good.data()), good.size()}, "");
    for (const StoredTensor& tensor : file.tensors())
      if (tensor.name.ends_with(suffix))
        return static_cast<size_t>(reinterpret_cast<const char*>(tensor.data.data()) - good.data());
    return size_t{0};
  };
  const auto bytes_of = [](auto value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  ASSERT_EQ(forged(place_of(".mean_abs"), good.substr(place_of(".mean_abs"), 4)), "accepted");
  EXPECT_THAT(forged(place_of(".mean_abs"), bytes_of(-1.0f)), HasSubstr("negative"));
  EXPECT_THAT(forged(place_of(".max_abs"), bytes_of(-1.0f)), HasSubstr("negative"));
  EXPECT_THAT(forged(place_of(".gram"), bytes_of(-1.0f)), HasSubstr("negative"));
  EXPECT_THAT(forged(place_of(".sample"), bytes_of(NAN)), HasSubstr("not finite"));
  EXPECT_THAT(forged(place_of(".counts"), bytes_of(INT64_MAX)), HasSubstr("contradict"));
  EXPECT_THAT(forged(place_of(".counts") + 8, bytes_of(int64_t{-1})), HasSubstr("contradict"));
  const std::string source = R"(\"random tokens\")";
  const size_t at = good.find(source);
  ASSERT_NE(at, good.npos);
  EXPECT_THAT(forged(at, "5" + std::string(source.size() - 1, ' ')), HasSubstr("\"info\""));
}

TEST_F(StatisticsFileTest, statistics_of_another_model_are_refused) {
  const StatisticsFile file(write(random_tokens(model_, 16, 24, 5), "a"));
  try {
    file.check_model("0123");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("another model"));
  }
}

TEST(CoverageTest, counts_the_tokens_behind_a_channel) {
  InputStats stats{.k = 3};
  stats.mean_abs = Tensor::zeros(DType::kF32, {3});
  stats.search.gram = Tensor::zeros(DType::kF32, {3, 3});
  stats.search.tokens = stats.search.gram_tokens = 1000;
  // Channel 0: 1 for every token. Channel 1: 1 for ten of them. Channel 2: dead.
  stats.mean_abs.data<float>()[0] = stats.search.gram.data<float>()[0] = 1;
  stats.mean_abs.data<float>()[1] = stats.search.gram.data<float>()[4] = 0.01f;
  const Coverage coverage = coverage_of(stats, "x");
  EXPECT_EQ(coverage.few, 2);
  EXPECT_EQ(coverage.dead, 1);
  EXPECT_EQ(coverage.worst, 1);
  EXPECT_NEAR(coverage.least, 10, 1e-4);
  const auto warnings = coverage_warnings({coverage});
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_THAT(warnings[0], HasSubstr("channel 1 of the input of x"));
}

TEST(CoverageTest, says_where_the_gram_matrix_is_singular) {
  Coverage few{.name = "x", .channels = 64, .worst = 0, .gram_tokens = 40};
  few.least = 40;
  const auto warnings = coverage_warnings({few});
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_THAT(warnings[0], HasSubstr("64 channels, 40 tokens"));
}

}  // namespace
}  // namespace whit

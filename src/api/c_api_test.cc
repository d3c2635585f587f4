#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "text_model.h"
#include "whit/whit.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

class CApiTest : public ::testing::Test {
 protected:
  CApiTest() {
    whit_engine_options options;
    whit_engine_options_init(&options);
    options.threads = 1;
    EXPECT_EQ(whit_engine_create(files_.path().c_str(), &options, &engine_), WHIT_OK)
        << whit_last_error();
    whit_sampling_params_init(&params_);
    params_.temperature = 0;
    params_.max_tokens = 6;
    params_.ignore_eos = 1;
  }
  ~CApiTest() override {
    whit_request_free(request_);
    whit_engine_free(engine_);
  }
  void create(const char* prompt = "Once upon") {
    ASSERT_EQ(whit_request_create(engine_, prompt, &params_, &request_), WHIT_OK)
        << whit_last_error();
  }

  TextModel files_;
  whit_engine* engine_ = nullptr;
  whit_request* request_ = nullptr;
  whit_sampling_params params_;
};

struct Stream {
  std::string text;
  size_t tokens = 0, stop_after = 1000;
};
int take(const char* text, size_t bytes, const int32_t*, size_t count, void* user_data) {
  auto* stream = static_cast<Stream*>(user_data);
  stream->text.append(text, bytes);
  stream->tokens += count;
  return stream->tokens >= stream->stop_after ? 1 : 0;
}

TEST_F(CApiTest, streams_what_the_answer_holds_in_the_end) {
  create();
  Stream stream;
  EXPECT_STREQ(whit_request_finish_reason(request_), "");
  ASSERT_EQ(whit_request_run(request_, take, &stream), WHIT_OK) << whit_last_error();
  size_t count = 0;
  EXPECT_NE(whit_request_tokens(request_, &count), nullptr);
  EXPECT_EQ(count, 6u);
  EXPECT_EQ(stream.tokens, 6u);
  EXPECT_EQ(stream.text, whit_request_text(request_));
  EXPECT_STREQ(whit_request_finish_reason(request_), "length");
}

TEST_F(CApiTest, a_callback_cancels_its_request) {
  params_.max_tokens = 50;
  create();
  Stream stream{.text = "", .tokens = 0, .stop_after = 3};
  ASSERT_EQ(whit_request_run(request_, take, &stream), WHIT_OK);
  EXPECT_EQ(stream.tokens, 3u);
  EXPECT_STREQ(whit_request_finish_reason(request_), "cancelled");
}

TEST_F(CApiTest, another_thread_cancels_a_request) {
  params_.max_tokens = 100;
  create();
  std::thread canceller([this] { whit_request_cancel(request_); });
  canceller.join();
  ASSERT_EQ(whit_request_run(request_, nullptr, nullptr), WHIT_OK);
  EXPECT_STREQ(whit_request_finish_reason(request_), "cancelled");
}

TEST_F(CApiTest, threads_that_run_requests_together_get_the_answers_of_each_alone) {
  params_.max_tokens = 40;
  std::vector<std::string> alone, together(4);
  std::vector<whit_request*> requests(4, nullptr);
  for (whit_request*& request : requests) {
    const std::string prompt(1 + alone.size() * 5, 'a');
    ASSERT_EQ(whit_request_create(engine_, prompt.c_str(), &params_, &request), WHIT_OK);
    ASSERT_EQ(whit_request_run(request, nullptr, nullptr), WHIT_OK);
    alone.emplace_back(whit_request_text(request));
  }
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      EXPECT_EQ(whit_request_run(requests[i], nullptr, nullptr), WHIT_OK);
      together[i] = whit_request_text(requests[i]);
      whit_request_free(requests[i]);
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(together, alone);
}

TEST_F(CApiTest, a_chat_message_goes_through_the_template) {
  ASSERT_EQ(whit_request_create_chat(engine_, "Hello", &params_, &request_), WHIT_OK);
  ASSERT_EQ(whit_request_run(request_, nullptr, nullptr), WHIT_OK);
  EXPECT_STREQ(whit_request_finish_reason(request_), "length");
}

TEST_F(CApiTest, a_shorter_struct_of_an_older_header_gets_the_defaults_for_the_rest) {
  whit_sampling_params older;
  std::memset(&older, 0xff, sizeof(older));
  older.size = offsetof(whit_sampling_params, temperature);
  older.max_tokens = 2;
  ASSERT_EQ(whit_request_create(engine_, "x", &older, &request_), WHIT_OK) << whit_last_error();
  ASSERT_EQ(whit_request_run(request_, nullptr, nullptr), WHIT_OK) << whit_last_error();
}

TEST_F(CApiTest, what_is_wrong_is_a_status_and_a_message) {
  whit_engine* engine = nullptr;
  EXPECT_EQ(whit_engine_create("nowhere", nullptr, &engine), WHIT_NOT_FOUND);
  EXPECT_THAT(whit_last_error(), HasSubstr("nowhere does not exist"));
  EXPECT_EQ(engine, nullptr);
  EXPECT_EQ(whit_engine_create(nullptr, nullptr, &engine), WHIT_INVALID_ARGUMENT);
  EXPECT_EQ(whit_engine_create("x", nullptr, nullptr), WHIT_INVALID_ARGUMENT);
  whit_engine_options options;
  whit_engine_options_init(&options);
  options.mode = "best";
  EXPECT_EQ(whit_engine_create(files_.path().c_str(), &options, &engine), WHIT_INVALID_ARGUMENT);
  EXPECT_THAT(whit_last_error(), HasSubstr("awq"));
  options.size = 3;
  EXPECT_EQ(whit_engine_create("x", &options, &engine), WHIT_INVALID_ARGUMENT);

  EXPECT_EQ(whit_request_create(nullptr, "x", nullptr, &request_), WHIT_INVALID_ARGUMENT);
  EXPECT_EQ(whit_request_create(engine_, nullptr, nullptr, &request_), WHIT_INVALID_ARGUMENT);
  params_.stop_count = 2;
  EXPECT_EQ(whit_request_create(engine_, "x", &params_, &request_), WHIT_INVALID_ARGUMENT);
  EXPECT_EQ(whit_request_run(nullptr, nullptr, nullptr), WHIT_INVALID_ARGUMENT);
  params_.stop_count = 0;
  params_.temperature = -1;
  create();
  EXPECT_EQ(whit_request_run(request_, nullptr, nullptr), WHIT_INVALID_ARGUMENT);
  EXPECT_THAT(whit_last_error(), HasSubstr("temperature"));
}

TEST_F(CApiTest, nothing_is_asked_of_null) {
  whit_engine_free(nullptr);
  whit_request_free(nullptr);
  whit_request_cancel(nullptr);
  whit_engine_options_init(nullptr);
  whit_sampling_params_init(nullptr);
  EXPECT_STREQ(whit_request_text(nullptr), "");
  EXPECT_EQ(whit_request_tokens(nullptr, nullptr), nullptr);
  EXPECT_EQ(whit_abi_version(), static_cast<uint32_t>(WHIT_ABI_VERSION));
}

}  // namespace
}  // namespace whit
